"""The benchmarks run, at tiny sizes, and their reports are complete. No time is judged."""

import itertools
import json
import os
import re
import subprocess
import sysconfig

import harness
import peers
import polar
import pytest
import steps
import torch
import train_step
from conftest import ROOT

BENCHMARKS = ROOT / "benchmarks"


def report_of(module, tmp_path, only=""):
    out = tmp_path / "report.json"
    report = module.main(["--quick", "--device", "cpu", "--only", only, "--out", str(out)])
    assert json.loads(out.read_text()) == report
    assert report.keys() == {
        *("command", "date", "machine", "cores", "cpu_capability", "cpu_bfloat16", "threads"),
        *("commit", "versions", "peers", "bfloat16_over_float32", "results"),
    }
    assert report["cores"] == len(os.sched_getaffinity(0))
    assert report["threads"] == torch.get_num_threads()
    assert report["peers"].keys() == peers.PEERS.keys()
    for name, result in report["results"].items():
        for key, value in result.items():
            if key.startswith(("ratio_to", "share_of")):
                assert value > 0, (name, key)
            assert not key.startswith("failed_"), (name, key, value)
    return report["results"]


def test_steps(tmp_path):
    results = report_of(steps, tmp_path)
    assert results.keys() == steps.CASES.keys()
    for name, result in results.items():
        expected = {"ratio_to_adamw_fused", "share_of_floor", "limited_by"}
        expected |= {"ratio_to_torch_muon"} if name.startswith("spectral") else set()
        rule, tensors = steps.CASES[name][0]["rule"], len(steps.CASES[name][1])
        expected |= {"ratio_to_reference"} if rule not in ("spectral", "adamw") else set()
        expected |= {"microseconds_each"} if tensors > 1 else set()
        if tensors >= 100:
            expected |= {"ratio_to_one_tensor", "percent_outside_kernels"}
        assert result.keys() == expected, name


def test_polar(tmp_path):
    results = report_of(polar, tmp_path)
    for name, result in results.items():
        expected = {"share_of_floor", "limited_by"}
        expected |= set() if name.startswith("right_spectral") else {"ratio_to_torch"}
        assert result.keys() == expected, name
    assert {name.split()[0] for name in results} == {"gram", "polar", "right_spectral"}


def test_whole_models(tmp_path):
    results = report_of(train_step, tmp_path, only="OLMoE")
    (result,) = results.values()
    assert result.keys() == {
        "parameters",
        "scale",
        "ratio_to_torch_muon_and_adamw_fused",
        "share_of_floor",
        "limited_by",
        "share_of_training_step",
    }
    assert result["share_of_training_step"] < 1


@pytest.mark.parametrize(
    "name, count", [("Qwen3-0.6B", 596_049_920), ("OLMoE-1B-7B, 12 of its 16 layers", None)]
)
def test_models_are_the_published_ones(name, count):
    """Qwen3-0.6B's own count; of OLMoE's, 6,919,161,856 with 16 layers, four layers less."""
    config_class, numbers, _ = train_step.MODELS[name]
    model = train_step.build(config_class, numbers, 1, "meta")
    found = sum(p.numel() for p in model.parameters())
    if count is None:
        layer = sum(p.numel() for p in model.model.layers[0].parameters())
        found, count = found + 4 * layer, 6_919_161_856
    assert found == count


@pytest.mark.parametrize(
    "layout, expected",
    [
        (None, [(3, 12, 8)]),
        ([{"transpose": True}], [(3, 8, 12)]),
        ([{"heads": 4, "dim": -2}], [(12, 3, 8)]),
        ([{"pairs": "interleaved", "dim": -2}], [(3, 6, 16)]),
        ([{"pairs": "concatenated", "dim": -1}], [(3, 24, 4)]),
        ([{"sections": [4, 8], "dim": -2}, {"heads": 2, "dim": -1}], [(6, 4, 4), (6, 8, 4)]),
    ],
)
def test_logical_matrices(layout, expected):
    assert train_step.logical_matrices((3, 12, 8), layout) == expected


def test_commit(tmp_path, monkeypatch):
    """Of the checkout that the harness is in; results that another benchmark made are no change."""

    def git(*words):
        return subprocess.check_output(["git", "-C", tmp_path, *words], text=True)

    for folder in ("results", "."):
        (tmp_path / "benchmarks" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "benchmarks" / folder / "a").write_text("before")
    monkeypatch.setattr(harness, "__file__", str(tmp_path / "benchmarks" / "a"))
    assert harness.commit() is None
    git("init", "--quiet")
    git("add", "--all")
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    git(*who, "commit", "--quiet", "--no-verify", "--message", "a")
    head = git("rev-parse", "HEAD").strip()
    (tmp_path / "benchmarks" / "results" / "a").write_text("after")
    assert harness.commit() == head
    (tmp_path / "benchmarks" / "a").write_text("after")
    assert harness.commit() == f"{head}-dirty"


def test_fewest_operations():
    """Counted by hand: five standard steps, and the Gram form where it takes fewer."""
    assert harness.polar_operations("spectral", 10, 10) == 5 * 3000 + 5 * 1000
    assert harness.polar_operations("spectral", 10, 100) == 3 * 10_000 + 17 * 1000
    assert harness.polar_operations("right_spectral", 100, 10) == 3 * 10_000 + 17 * 1000
    assert harness.polar_operations("right_spectral", 10, 100) == 5 * (300_000 + 1_000_000)
    assert harness.polar_operations("left_spectral", 100, 10) == 5 * (300_000 + 1_000_000)


def test_a_peer_that_fails_is_named():
    def broken():
        raise RuntimeError("no kernel for this shape")

    settings = harness.Settings("cpu", quick=True)
    result = settings.compare({"ours": lambda: torch.ones(1), "other": broken})
    assert result == {"failed_other": "no kernel for this shape"}


def gpu_check(out, path, **settings):
    return subprocess.run(
        [BENCHMARKS / "gpu_check.sh", out],
        env=os.environ | settings | {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )


# A program that does nothing but in pytest's place.
STUB = '#!/bin/sh\ncase "$*" in *"-m pytest"*) %s ;; esac\n'


@pytest.fixture
def stubs(tmp_path):
    """A folder of what gpu_check.sh runs; pytest collects one test."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("nvidia-smi", "cmake", "compute-sanitizer", "python3"):
        (folder / name).write_text(STUB % "echo a.py::test")
        (folder / name).chmod(0o755)
    return folder


def test_no_stage_takes_the_time_of_the_next(tmp_path, stubs):
    done = gpu_check(tmp_path, stubs)
    assert done.returncode == 0, done.stdout + done.stderr
    said = (tmp_path / "stages.txt").read_text()
    had = {name: int(s) for name, s in re.findall(r"(\S+): begins, has (\d+) s", said)}
    assert re.findall(r"(\S+): passed", said) == list(had) and len(had) == 12
    assert max(had.values()) <= 585  # and five until what does not listen is killed
    # Nothing was used up, so that what a stage has beyond the one before is what was kept for it.
    kept = {name: had[name] - had[before] for before, name in itertools.pairwise(had)}
    assert min(kept.values()) >= 20
    assert sum(kept[name] for name in ("steps", "polar", "train_step")) >= 155


def test_the_stages_after_one_that_hangs_are_run(tmp_path, stubs):
    (stubs / "python3").write_text(STUB % "exec sleep 60")
    done = gpu_check(tmp_path, stubs, STAGES="build tests benchmarks", LIMIT="2")
    said = (tmp_path / "stages.txt").read_text()
    assert "build: passed" in said and "tests: cut off" in said
    for name in ("steps", "polar", "train_step"):
        assert f"{name}: passed" in said
    assert done.returncode == 1 and "not passed: tests" in done.stdout


def test_nothing_is_measured_without_a_build(tmp_path, stubs):
    (stubs / "cmake").write_text("#!/bin/sh\nexit 3\n")
    assert gpu_check(tmp_path, stubs).returncode == 1
    said = (tmp_path / "stages.txt").read_text()
    assert "build: failed (3)" in said and "passed" not in said
    for name in ("tests", "steps", "polar", "train_step", "sanitizer-memcheck"):
        assert f"{name}: left out" in said


@pytest.mark.slow
def test_the_sanitizer_has_tests_for_every_kernel(tmp_path):
    done = gpu_check(tmp_path, sysconfig.get_path("scripts"), STAGES="collect")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_polynomial_of_batches" in (tmp_path / "sanitizer_tests.txt").read_text()
