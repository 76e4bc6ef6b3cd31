"""The benchmarks run, at tiny sizes, and their reports are complete. No time is judged."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import harness  # noqa: E402
import peers  # noqa: E402
import polar  # noqa: E402
import steps  # noqa: E402
import train_step  # noqa: E402


def report_of(module, tmp_path, only=""):
    out = tmp_path / "report.json"
    report = module.main(["--quick", "--device", "cpu", "--only", only, "--out", str(out)])
    assert json.loads(out.read_text()) == report
    assert report.keys() >= {"command", "date", "machine", "threads", "versions", "peers"}
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
        if any(count in name for count in ("400 x", "120 x", "128 x")):
            expected |= {"ratio_to_one_tensor", "share_outside_kernels"}
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


@pytest.mark.slow
def test_the_sanitizer_has_tests_for_every_kernel(tmp_path):
    path = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]
    done = subprocess.run(
        [BENCHMARKS / "gpu_check.sh", tmp_path],
        env=os.environ | {"STAGES": "collect", "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_polynomial_of_batches" in (tmp_path / "sanitizer_tests.txt").read_text()
