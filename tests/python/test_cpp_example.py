"""The C++ training program: built as its header says, it learns, and resumes with equal bits."""

import contextlib
import json
import math
import os
import pty
import random
import re
import string
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest
from conftest import ROOT, CMake
from test_install import prefix, without_nvcc  # noqa: F401  (fixtures)

# A model that takes milliseconds a step. One thread: the sums' order must not depend on the load.
TINY = """--steps 30 --batch-size 4 --seq-len 48 --hidden-size 32 --num-hidden-layers 2
    --num-attention-heads 4 --num-key-value-heads 2 --intermediate-size 48 --num-experts 4
    --moe-intermediate-size 24 --warmup-steps 4 --lr 0.01 --eval-every 10 --threads 1""".split()
OPTIMIZERS = ("equivariant", "adamw", "muon")


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> list[Path]:
    directory, stdlib = tmp_path_factory.mktemp("text"), Path(sysconfig.get_path("stdlib"))
    for name in ("argparse.py", "textwrap.py"):
        (directory / name).write_bytes((stdlib / name).read_bytes())
    return sorted(directory.iterdir())


@pytest.fixture(scope="module")
def from_package(tmp_path_factory, without_nvcc) -> Path:  # noqa: F811
    """Built against the package with the very commands of the program's head."""
    directory = tmp_path_factory.mktemp("cpp_example")
    (directory / "examples").symlink_to(ROOT / "examples")
    head = (ROOT / "examples/cpp/train_lm.cpp").read_text().partition("#include")[0]
    commands = re.findall(r"^//   ((?:prefix=|cmake ).*)$", head, re.M)
    assert len(commands) == 3
    CMake(without_nvcc).run("bash", "-e", "-c", "\n".join(commands), cwd=directory)
    return directory / "build/train_lm/train_lm"


@pytest.fixture(scope="module")
def train_lm(tmp_path_factory, torch_dir, prefix, without_nvcc, texts):  # noqa: F811
    """Runs the program, built against an installed prefix, on a small text; gives its output."""
    directory = tmp_path_factory.mktemp("cpp_example")
    cmake = CMake(without_nvcc)
    cmake.configure(ROOT / "examples/cpp", directory, f"-DCMAKE_PREFIX_PATH={prefix};{torch_dir}")
    cmake.build(directory)

    def run(*arguments, data=texts, ok=True) -> str:
        source = ["--data", *data] if data else []
        return cmake.run(directory / "train_lm", *TINY, *source, *arguments, ok=ok, cwd=directory)

    run.cmake, run.program = cmake, directory / "train_lm"
    return run


def val_losses(output: str) -> dict[int, float]:
    lines = re.findall(r"^step (\d+) .*val_loss ([\d.]+)", output, re.M)
    return {int(step): float(loss) for step, loss in lines}


def fingerprint(output: str) -> str:
    return re.search(r"^parameters ([0-9a-f]+)$", output, re.M)[1]


def read_metrics(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_seconds(metrics) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in metrics]


def test_the_commands_of_the_head(from_package, texts):
    output = CMake().run(from_package, *TINY, "--steps", "1", "--data", *texts)
    assert list(val_losses(output)) == [0, 1]


def test_the_label_of_position_t_is_token_t_plus_1(train_lm, tmp_path):
    """Each random letter is followed by its capital. From one byte to the next half of the text is
    certain; the byte after the next is another random letter, or its capital."""
    choose, letters = random.Random(0), string.ascii_lowercase[:8]
    (tmp_path / "text").write_text("".join(c + c.upper() for c in choose.choices(letters, k=20000)))
    output = train_lm("--steps", "60", "--optimizer", "adamw", data=[tmp_path / "text"])
    assert val_losses(output)[60] < 0.75 * math.log(len(letters))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_validation_loss_falls_and_a_resumed_run_has_equal_bits(train_lm, tmp_path, optimizer):
    def outputs(name):
        return "--checkpoint", tmp_path / f"{name}.pt", "--metrics", tmp_path / f"{name}.jsonl"

    arguments = ["--optimizer", optimizer]
    whole = train_lm(*arguments, *outputs("whole"))
    losses = val_losses(whole)
    assert list(losses) == [0, 10, 20, 30]
    assert losses[0] > losses[10] > losses[30] and losses[30] < losses[0] - 1.5

    part = train_lm(*arguments, *outputs("part"), "--stop-after", "13")
    assert fingerprint(part) != fingerprint(whole)
    metrics = tmp_path / "part.jsonl"
    assert [line["step"] for line in read_metrics(metrics)] == list(range(14))
    metrics.write_text("what an interruption left")
    rest = train_lm(*arguments, *outputs("part"), "--resume")
    assert "resuming after step 13" in rest
    assert list(val_losses(rest)) == [20, 30]
    assert val_losses(rest)[30] == losses[30]
    assert fingerprint(rest) == fingerprint(whole)
    a, b = (read_metrics(tmp_path / f"{name}.jsonl") for name in ("whole", "part"))
    assert without_seconds(a) == without_seconds(b)
    seconds = [line["seconds"] for line in b]
    assert seconds == sorted(seconds)
    names = {f"{name}.{kind}" for name in ("part", "whole") for kind in ("pt", "jsonl")}
    assert set(os.listdir(tmp_path)) == names  # nothing unfinished


def test_metrics_are_those_of_the_python_program(train_lm, tmp_path):
    """The keys and their meaning; test_train_lm.py has the same of Python's."""
    output = train_lm("--metrics", tmp_path / "run.jsonl")
    metrics = read_metrics(tmp_path / "run.jsonl")
    assert set(metrics[0]) == {"step", "val_loss", "tokens", "seconds"}
    for i, line in enumerate(metrics[1:], start=1):
        assert set(line) - {"val_loss"} == {"step", "loss", "lr", "tokens", "seconds"}
        assert line["step"] == i and line["tokens"] == i * 4 * 48
    assert [line["lr"] for line in metrics[1:5]] == pytest.approx([2.5e-3, 5e-3, 7.5e-3, 1e-2])
    losses = {line["step"]: line["val_loss"] for line in metrics if "val_loss" in line}
    assert losses == pytest.approx(val_losses(output), rel=1e-3)  # four digits are printed


def test_the_metrics_are_written_as_the_run_goes(train_lm, texts, tmp_path):
    """They are there while the program runs, and stay when it is killed."""
    metrics = tmp_path / "run.jsonl"
    words = [train_lm.program, *TINY, "--steps", "1000000", "--data", *texts, "--metrics", metrics]
    running = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        while not metrics.exists() or metrics.read_text().count("\n") < 3:
            assert running.poll() is None, "the run has ended"
            time.sleep(0.01)
    finally:
        running.kill()
        running.wait()
    lines = read_metrics(metrics)
    assert [line["step"] for line in lines] == list(range(len(lines)))


def read_terminal(terminal) -> str:
    """What has been written to it; its other end is closed."""
    shown = b""
    with contextlib.suppress(OSError):  # so a terminal says that there is no more
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    return shown.decode()


def test_a_progress_line_on_a_terminal_only(train_lm, texts):
    terminal, other_end = pty.openpty()
    words = [train_lm.program, *TINY, "--steps", "3", "--data", *texts]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=other_end, check=True
    )
    os.close(other_end)
    shown = read_terminal(terminal)
    for step in (1, 2, 3):
        assert f"\r\x1b[Kstep {step}/3  loss " in shown
    assert shown.endswith("\r\x1b[K")
    assert b"\x1b" not in done.stdout and "\x1b" not in train_lm("--steps", "3")


def test_the_default_text_is_the_standard_library_of_python3(train_lm, texts, tmp_path):
    """Of the one on PATH; where there is none, the program looks where distributions put it."""
    (tmp_path / "python3").write_text(f"#!/bin/sh\nexec echo {texts[0].parent}\n")
    (tmp_path / "python3").chmod(0o755)
    env = {**train_lm.cmake.env, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = [train_lm.program, *TINY, "--steps", "1"]
    output = subprocess.run(words, env=env, text=True, capture_output=True, check=True).stdout
    size = sum(len(text.read_bytes()) + 2 for text in texts)  # both parts end in a zero byte
    training, validation = map(int, re.search(r"(\d+) training and (\d+)", output).groups())
    assert training + validation == size


def test_the_default_text_without_python3(train_lm, tmp_path):
    env = {**train_lm.cmake.env, "PATH": str(tmp_path)}
    words = [train_lm.program, *TINY, "--steps", "1"]
    done = subprocess.run(words, env=env, text=True, capture_output=True)
    if list(Path("/usr/lib").glob("python3*/*.py")) or list(
        Path("/usr/local/lib").glob("python3*/*.py")
    ):
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 1 and "name a text with --data" in done.stderr


def test_all_optimizers_start_from_the_same_weights_and_batches(train_lm, tmp_path):
    runs = []
    for name in OPTIMIZERS:
        train_lm("--steps", "1", "--optimizer", name, "--metrics", tmp_path / name)
        runs.append(read_metrics(tmp_path / name))
    assert len({run[0]["val_loss"] for run in runs}) == 1
    assert len({run[1]["loss"] for run in runs}) == 1
    assert len({run[1]["val_loss"] for run in runs}) == len(runs)


def test_roles_that_only_overrides_tell(train_lm):
    lines = train_lm("--steps", "1").splitlines()
    lines = [line.removeprefix("2 × ").split() for line in lines if line.strip()]  # two layers
    words = {name: " ".join(rest) for name, *rest in lines}
    assert words["lm_head.weight"].startswith("256×32 lm_head row_norm, centered")
    assert words["layers.*.attention.k_proj.weight"].startswith(
        "16×32 attention spectral 2 of 8×32"
    )
    assert words["layers.1.moe.router.weight"].startswith("4×32 router left_spectral, centered")
    assert words["layers.1.moe.gate_up_proj"].startswith("4×48×32 expert_in spectral 8 of 24×32")


def test_bad_arguments_are_named(train_lm, tmp_path):
    checkpoint = tmp_path / "run.pt"
    train_lm("--steps", "2", "--checkpoint", checkpoint)
    for arguments, message in [
        (["--lr", "fast"], "--lr fast: must be a number of at least 0"),
        (["--lr", "inf"], "--lr inf: must be a number of at least 0"),
        (["--steps", "0"], "--steps 0: must be a number of at least 1"),
        (["--steps", "1.5"], "--steps 1.5: must be a number of at least 1"),
        (["--sheps", "1"], "--sheps: no such option"),
        (["--seed"], "--seed: needs a value"),
        (["--optimizer", "sgd"], "--optimizer sgd: must be equivariant, adamw or muon"),
        (["--hidden-size", "36"], "--hidden-size: must be an even multiple"),
        (["--resume"], "--resume: name the file with --checkpoint"),
        (["--resume", "--checkpoint", tmp_path / "none.pt"], "--resume: no file"),
        (["--checkpoint", tmp_path / "none/run.pt"], "none/run.pt: no such directory"),
        (["--checkpoint", checkpoint], "run.pt exists: --resume goes on"),
        (["--metrics", tmp_path / "none/run"], "--metrics"),
        (["--metrics", checkpoint], "run.pt exists: --resume goes on"),
        (["--data", tmp_path / "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["--seq-len", "100000"], "too little text"),
        (["--lr", "1e36", "--max-grad-norm", "0"], "the loss is not finite at step"),
        (
            ["--steps", "3", "--checkpoint", checkpoint, "--resume"],
            "was made with --steps 2, and this run has --steps 3",
        ),
    ]:
        output = train_lm(*arguments, ok=False)
        assert message in output and "train_lm: " in output, (arguments, output)
