"""examples/train_lm.py: each architecture with each optimizer, schedule, resuming, errors."""

import json
import random
import runpy
import subprocess
import sys

import models
import options
import pytest
import torch
import train_lm
from conftest import ROOT
from train_lm_helpers import TINY, surroundings  # noqa: F401

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Command-line options that name three small text files."""
    words = "row column matrix spectral norm gram polar shift router expert head".split()
    choose = random.Random(0)
    directory = tmp_path_factory.mktemp("text")
    for i in range(3):
        lines = [" ".join(choose.choices(words, k=8)) for _ in range(200)]
        (directory / f"{i}.txt").write_text("\n".join(lines) + "\n")
    return ["--data", *map(str, sorted(directory.iterdir()))]


def read_metrics(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def without_seconds(metrics):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in metrics]


# Optimizers and schedule


@pytest.mark.parametrize("optimizer", options.OPTIMIZERS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_each_parameter_is_in_one_group(arch, tied, optimizer):
    args = options.parse_args("", ["--optimizer", optimizer, "--weight-decay", "0.125"])
    model = models.build_model(arch, 300, 64, 2, tied=tied)
    groups = [
        group for o in train_lm.build_optimizers(optimizer, model, args) for group in o.param_groups
    ]
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in model.parameters())
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(p) for p in models.hidden_matrices(model).values()}
    assert all(group["weight_decay"] in (0.0, 0.125) for group in groups)


def test_schedule_is_warmup_then_constant_then_linear_to_zero():
    factors = [train_lm.lr_factor(s, 100, 10, 0.4) for s in range(101)]
    assert factors[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert factors[10:60] == [1.0] * 50
    assert factors[60:] == pytest.approx([i / 41 for i in range(40, -1, -1)])
    assert [train_lm.lr_factor(s, 3, 0, 0.0) for s in range(3)] == [1.0] * 3
    assert min(train_lm.lr_factor(s, 5, 100, 1.0) for s in range(5)) > 0


@pytest.mark.parametrize("arch", models.MIXTURES)
def test_the_load_balancing_loss_is_added_when_wanted(arch):
    model = models.build_model(arch, 50, 64, 1)
    windows = torch.randint(0, 50, (2, 9))
    plain, half, one = (train_lm.loss_of(model, windows, c).item() for c in (0.0, 0.5, 1.0))
    assert one - plain == pytest.approx(2 * (half - plain), rel=1e-3) and one > plain


def test_the_default_is_equivariant_then_adamw_on_qwen3():
    args = options.parse_args("", [])
    assert (args.arch, args.optimizer) == (["qwen3"], ["equivariant", "adamw"])
    assert options.parse_args("", ["--arch", "all"]).arch == list(models.ARCHITECTURES)


# Whole runs


@pytest.mark.parametrize("optimizer", options.OPTIMIZERS)
@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_a_tiny_run(arch, optimizer, data, tmp_path):
    out = tmp_path / "out"
    results = train_lm.main(
        [*TINY, *data, "--arch", arch, "--optimizer", optimizer, "--out", str(out)]
    )
    metrics = read_metrics(out / f"{arch}-{optimizer}")
    assert metrics == results[arch][optimizer]
    assert [line["step"] for line in metrics] == list(range(7))
    assert [line["step"] for line in metrics if "val_loss" in line] == [0, 3, 6]
    for i, line in enumerate(metrics[1:], start=1):
        assert set(line) - {"val_loss"} == {"step", "loss", "lr", "tokens", "seconds"}
        assert line["tokens"] == i * 2 * 16 and line["lr"] > 0
    assert metrics[-1]["val_loss"] < metrics[0]["val_loss"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["results"][arch][optimizer]["val_loss"] == metrics[-1]["val_loss"]
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_optimizers_start_from_the_same_weights_and_batches(data, tmp_path):
    argv = [*TINY, *data, "--tied", "--optimizer", *options.OPTIMIZERS]
    results = train_lm.main([*argv, "--out", str(tmp_path / "out")])
    runs = results["qwen3"].values()
    assert len(runs) == len(options.OPTIMIZERS) == 3
    assert len({run[0]["val_loss"] for run in runs}) == 1
    assert len({run[1]["loss"] for run in runs}) == 1
    assert len({run[-1]["val_loss"] for run in runs}) == 3


def test_compare_trains_all_architectures(data, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    argv = [*TINY, "--steps", "1", *data, "--optimizer", "equivariant", "adamw", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["compare.py", *argv])
    runpy.run_path(str(EXAMPLES / "compare.py"), run_name="__main__")
    runs = {f"{a}-{o}" for a in models.ARCHITECTURES for o in ("equivariant", "adamw")}
    assert {path.parent.name for path in out.glob("*/metrics.jsonl")} == runs
    table = capsys.readouterr().out.partition("architecture")[2]
    assert all(arch in table for arch in models.ARCHITECTURES)


def assert_same(a, b, path=""):
    """Equal bit for bit, through dicts and lists."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}/{i}")
    else:
        assert a == b, path


@pytest.mark.parametrize(
    "arch, optimizers, process",
    [
        ("qwen3", ["equivariant"], "another"),
        ("qwen3", ["adamw"], "this"),
        ("qwen3", ["muon"], "this"),
        ("qwen3", ["muon", "equivariant"], "this"),
        ("gemma3", ["equivariant"], "this"),
        ("olmoe", ["equivariant"], "this"),
        ("gpt_oss", ["equivariant"], "this"),
        ("gpt_oss", ["muon"], "this"),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    arch, optimizers, process, data, tmp_path, monkeypatch
):
    """The last optimizer's run is interrupted; the ones before it are not made again."""
    name = f"{arch}-{optimizers[-1]}"
    argv = [*TINY, *data, "--arch", arch, "--optimizer", *optimizers, "--checkpoint-every", "2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_lm.main([*argv, "--out", str(whole)])

    update = train_lm.Run.update

    def interrupted(run):
        if run.step == 3 and run.directory.name == name:  # one step after a checkpoint
            raise KeyboardInterrupt
        return update(run)

    monkeypatch.setattr(train_lm.Run, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_lm.main([*argv, "--out", str(parts)])
    assert [line["step"] for line in read_metrics(parts / name)] == [0, 1, 2, 3]
    resumed = []
    monkeypatch.setattr(train_lm.Run, "update", lambda run: resumed.append(run) or update(run))
    argv += ["--out", str(parts), "--resume"]
    if process == "another":
        subprocess.run([sys.executable, EXAMPLES / "train_lm.py", *argv], check=True)
    else:
        torch.manual_seed(12345)  # as another process would have another random state
        train_lm.main(argv)
        assert [run.directory.name for run in resumed] == [name] * 4

    for run in (f"{arch}-{optimizer}" for optimizer in optimizers):
        a, b = (without_seconds(read_metrics(out / run)) for out in (whole, parts))
        assert a == b
        a, b = (torch.load(out / run / "checkpoint.pt") for out in (whole, parts))
        for content in (a, b):
            content["metrics"] = without_seconds(content["metrics"])
            content.pop("seconds")
        assert a["step"] == 6
        assert_same(a, b)


def test_resuming_refuses_other_settings_and_other_text(data, tmp_path):
    argv = [*TINY, "--steps", "2", "--optimizer", "adamw", "--out", str(tmp_path / "out")]
    train_lm.main([*argv, *data])
    with pytest.raises(SystemExit, match="lr was 0.002 and is now 0.003"):
        train_lm.main([*argv, *data, "--resume", "--lr", "0.003"])
    with pytest.raises(SystemExit, match="text was "):
        train_lm.main([*argv, *data[:-1], "--resume"])
    train_lm.main([*argv, *data, "--resume", "--eval-every", "1"])  # does not change the run


# Bad arguments


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--arch", "llama"], "invalid choice: 'llama'"),
        (["--optimizer", "sgd"], "invalid choice: 'sgd'"),
        (["--lr", "-1"], "--lr: -1: must be at least 0"),
        (["--lr", "nan"], "--lr: nan: must be at least 0"),
        (["--lr", "fast"], "--lr: invalid float value: 'fast'"),
        (["--steps", "0"], "--steps: 0: must be at least 1"),
        (["--decay-fraction", "1.5"], "--decay-fraction: 1.5: must be from 0 to 1"),
        (["--hidden-size", "100"], "--hidden-size 100: must be a multiple of 64"),
        (["--data", "nowhere.txt"], "--data nowhere.txt: no such file"),
        (["--data", "a", "--dataset", "b"], "not allowed with argument --data"),
        (["--dataset", "b"], "pip install datasets"),
        (["--device", "abacus"], "--device abacus: "),
        (["--resume"], "name the directory of the interrupted run with --out"),
        (["--resume", "--out", "nowhere"], "nowhere holds no checkpoint"),
        (["--seq-len", "100000"], "too little text: "),
    ],
)
def test_bad_arguments_are_named(argv, message, data, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "datasets", None)  # as where it is not installed
    source = [] if {"--data", "--dataset"} & set(argv) else data
    with pytest.raises(SystemExit) as raised:
        train_lm.main([*TINY, "--optimizer", "adamw", *source, *argv])
    assert message in f"{raised.value} {capsys.readouterr().err}"
    assert raised.value.code not in (0, None)


def test_results_are_not_overwritten(data, tmp_path, capsys):
    argv = [*TINY, "--steps", "1", *data, "--optimizer", "adamw", "--out", str(tmp_path / "out")]
    train_lm.main(argv)
    with pytest.raises(SystemExit):
        train_lm.main(argv)
    assert "holds checkpoints: --resume goes on" in capsys.readouterr().err


def test_a_missing_erlangen_is_named_at_once(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "erlangen", None)
    with pytest.raises(SystemExit):
        train_lm.main([])
    assert "erlangen is not installed" in capsys.readouterr().err


def test_a_diverging_run_stops_and_says_so(data):
    with pytest.raises(SystemExit, match="qwen3 adamw: the loss is .* at step .: lower --lr"):
        train_lm.main([*TINY, *data, "--optimizer", "adamw", "--lr", "1e36"])


def test_empty_text_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(SystemExit, match="too little text"):
        train_lm.main([*TINY, "--optimizer", "adamw", "--data", str(tmp_path / "empty.txt")])
