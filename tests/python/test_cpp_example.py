"""The C++ training program: built as its header says, it learns, and resumes with equal bits."""

import os
import re
import sysconfig
from pathlib import Path

import erlangen
import pytest
from conftest import ROOT, CMake
from test_install import without_nvcc  # noqa: F401  (a fixture)

# A model that takes milliseconds a step. One thread: the sums' order must not depend on the load.
TINY = """--steps 30 --batch-size 4 --seq-len 48 --hidden-size 32 --num-hidden-layers 2
    --num-attention-heads 4 --num-key-value-heads 2 --intermediate-size 48 --num-experts 4
    --moe-intermediate-size 24 --warmup-steps 4 --lr 0.01 --eval-every 10 --threads 1""".split()


@pytest.fixture(scope="module")
def train_lm(tmp_path_factory, torch_dir, without_nvcc):  # noqa: F811
    """Runs the program on a small text, and gives its output."""
    directory = tmp_path_factory.mktemp("cpp_example")
    prefixes = f"{erlangen.cmake_prefix_path};{torch_dir}"
    cmake = CMake(without_nvcc)
    cmake.configure(ROOT / "examples/cpp", directory, f"-DCMAKE_PREFIX_PATH={prefixes}")
    cmake.build(directory)

    stdlib = Path(sysconfig.get_path("stdlib"))
    texts = []
    for name in ("argparse.py", "textwrap.py"):
        texts.append(directory / name)
        texts[-1].write_bytes((stdlib / name).read_bytes())

    def run(*arguments, data=texts, ok=True) -> str:
        words = [*TINY, "--data", *data, *arguments]
        return cmake.run(directory / "train_lm", *words, ok=ok, cwd=directory)

    return run


def val_losses(output: str) -> dict[int, float]:
    lines = re.findall(r"^step (\d+) .*val_loss ([\d.]+)", output, re.M)
    return {int(step): float(loss) for step, loss in lines}


def fingerprint(output: str) -> str:
    return re.search(r"^parameters ([0-9a-f]+)$", output, re.M)[1]


@pytest.mark.parametrize("optimizer", ["equivariant", "adamw"])
def test_validation_loss_falls_and_a_resumed_run_has_equal_bits(train_lm, tmp_path, optimizer):
    arguments = ["--optimizer", optimizer, "--checkpoint"]
    whole = train_lm(*arguments, tmp_path / "whole.pt")
    losses = val_losses(whole)
    assert list(losses) == [0, 10, 20, 30]
    assert losses[0] > losses[10] > losses[30] and losses[30] < losses[0] - 1.5

    part = train_lm(*arguments, tmp_path / "part.pt", "--stop-after", "13")
    assert fingerprint(part) != fingerprint(whole)
    rest = train_lm(*arguments, tmp_path / "part.pt", "--resume")
    assert "resuming after step 13" in rest
    assert list(val_losses(rest)) == [20, 30]
    assert val_losses(rest)[30] == losses[30]
    assert fingerprint(rest) == fingerprint(whole)
    assert sorted(os.listdir(tmp_path)) == ["part.pt", "whole.pt"]  # nothing unfinished


def test_both_optimizers_start_from_the_same_weights(train_lm):
    runs = [train_lm("--steps", "1", "--optimizer", o) for o in ("equivariant", "adamw")]
    starts, ends = ([val_losses(run)[step] for run in runs] for step in (0, 1))
    assert starts[0] == starts[1] and ends[0] != ends[1]


def test_roles_that_only_overrides_tell(train_lm):
    lines = train_lm("--steps", "1").splitlines()
    words = {line.split()[0]: " ".join(line.split()[1:]) for line in lines if line.strip()}
    assert words["lm_head.weight"].startswith("256×32 lm_head row_norm, centered")
    assert words["layers.0.attention.k_proj.weight"].startswith(
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
        (["--optimizer", "sgd"], "--optimizer sgd: must be equivariant or adamw"),
        (["--hidden-size", "36"], "--hidden-size: must be an even multiple"),
        (["--resume"], "--resume: name the file with --checkpoint"),
        (["--resume", "--checkpoint", tmp_path / "none.pt"], "--resume: no file"),
        (["--checkpoint", tmp_path / "none/run.pt"], "none/run.pt: no such directory"),
        (["--checkpoint", checkpoint], "run.pt exists: --resume goes on"),
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
