"""A kernel proves itself before it is used. Here those for CPUs do, as those for GPUs would, and
one of them is wrong: caught, named, and replaced by the reference."""

import json
import os
import subprocess
import sys
from pathlib import Path

import erlangen
import pytest
import torch
from conftest import ROOT
from erlangen import _C

RULES = {
    "row_norm": {"rule": "row_norm"},
    "centered_row_norm": {"rule": "row_norm", "center": True},
    "column_norm": {"rule": "column_norm"},
    "polar_update": {"rule": "spectral", "ns_dtype": "float32"},
}

# Two steps of one parameter, with the kernels and by the reference, in a process of its own. Prints
# what became of it.
PROGRAM = """
import json, sys, warnings
from concurrent.futures import ThreadPoolExecutor

import erlangen, torch
from erlangen import _C

options, threads = json.loads(sys.argv[1]), int(sys.argv[2])

def train(_=None):
    generator = torch.Generator().manual_seed(0)
    param = torch.randn(48, 40, generator=generator).requires_grad_()
    optimizer = erlangen.Equivariant([{"params": [param], **options}], lr=0.1)
    result = {"errors": []}
    for _ in range(2):
        param.grad = torch.randn(48, 40, generator=generator)
        try:
            optimizer.step()
        except Exception as error:
            result["errors"].append([type(error).__name__, str(error)])
            assert not any(m["momentum_buffer"].any() for m in optimizer.state.values())
    return param.detach(), result

random = torch.get_rng_state()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    count = _C.kernel_count()
    with ThreadPoolExecutor(threads) as pool:
        [(by_kernel, result), *others] = pool.map(train, range(threads))
result["count"] = _C.kernel_count() - count
result["random"] = torch.equal(random, torch.get_rng_state())
result["warnings"] = [str(warning.message) for warning in caught]
result["outcomes"] = _C.remembered_outcomes()
_C.use_kernels(False)
by_reference, _ = train()
result["close"] = torch.allclose(by_kernel, by_reference, rtol=1e-4, atol=1e-5)
result["same_bits"] = torch.equal(by_kernel, by_reference)
result["alike"] = all(torch.equal(other, by_kernel) for other, _ in others)
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory) -> Path:
    library = tmp_path_factory.mktemp("wrong") / "wrong_kernels.so"
    source = ROOT / "tests/python/wrong_kernels.cpp"
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-shared", "-fPIC", f"-I{ROOT}"]
    done = subprocess.run([*command, source, "-o", library], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return library


def run(library, kernel, wrong, threads=1, **environment) -> dict:
    ours = {"LD_PRELOAD": str(library), "WRONG_KERNEL": wrong, "ERLANGEN_SELF_CHECK": ""}
    env = os.environ | ours | environment
    command = [sys.executable, "-c", PROGRAM, json.dumps(RULES[kernel]), str(threads)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def name_of(kernel) -> str:
    products = " and float32 products" if kernel == "polar_update" else ""
    return f"{kernel} of float32 parameters with float32 momentum{products}"


@pytest.mark.parametrize("kernel", RULES)
def test_a_wrong_kernel_is_named_and_replaced(preloaded, kernel):
    result = run(preloaded, kernel, wrong=kernel)
    assert result["same_bits"] and result["count"] == 0 and not result["errors"]
    [text] = result["warnings"]
    assert f"the kernel {name_of(kernel)} has failed its check on cpu" in text
    assert "the parameter [" in text and "`python -m erlangen`" in text
    [[name, failure]] = result["outcomes"]
    assert name == name_of(kernel) and failure in text


@pytest.mark.parametrize("kernel", RULES)
def test_a_right_kernel_is_used(preloaded, kernel):
    result = run(preloaded, kernel, wrong="")
    assert result["close"] and result["count"] == 2
    assert not result["warnings"] and not result["errors"]
    assert result["outcomes"] == [[name_of(kernel), ""]]
    assert result["random"]


def test_threads_wait_for_one_outcome(preloaded):
    result = run(preloaded, "row_norm", wrong="row_norm", threads=4)
    assert result["same_bits"] and result["alike"] and result["count"] == 0
    assert len(result["warnings"]) == 1 and len(result["outcomes"]) == 1


def test_strict(preloaded):
    """An error each time, and nothing has changed."""
    result = run(preloaded, "row_norm", wrong="row_norm", ERLANGEN_SELF_CHECK="1")
    assert [kind for kind, _ in result["errors"]] == ["RuntimeError"] * 2
    assert all(name_of("row_norm") in text for _, text in result["errors"])
    assert not result["warnings"] and result["count"] == 0
    right = run(preloaded, "row_norm", wrong="column_norm", ERLANGEN_SELF_CHECK="1")
    assert not right["errors"] and right["count"] == 2


def test_left_out(preloaded):
    """Then nobody notices, which shows that the kernel is wrong indeed."""
    result = run(preloaded, "row_norm", wrong="row_norm", ERLANGEN_SELF_CHECK="0")
    assert not result["close"] and result["count"] == 2
    assert not result["outcomes"] and not result["warnings"]


def test_bad_switch(preloaded):
    result = run(preloaded, "row_norm", wrong="", ERLANGEN_SELF_CHECK="yes")
    kind, text = result["errors"][0]
    assert kind == "ValueError" and "ERLANGEN_SELF_CHECK is yes; allowed: 0, 1" in text


def test_capture_before_the_check(preloaded):
    result = run(preloaded, "polar_update", wrong="", CAPTURING="1")
    kind, text = result["errors"][0]
    assert kind == "ValueError" and "take one step before the capture" in text
    assert name_of("polar_update") in text and not result["outcomes"]


def test_all_kernels_of_this_machine(device):
    outcomes = _C.check_kernels(str(device))
    assert not [outcome for outcome in outcomes if outcome[1]]
    kernels = {name.split(" of ")[0] for name, _ in outcomes}
    assert kernels >= {*RULES, "polar_iteration", "symmetric_product", "mirror_lower"}


def test_report(monkeypatch, capsys):
    """`python -m erlangen`, without its timings."""
    from erlangen import __main__ as report

    def in_turns(functions, device):
        for function in functions.values():
            function()
        return dict.fromkeys(functions, 0.5)

    monkeypatch.setattr(report, "in_turns", in_turns)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert report.main() == 0
    printed = capsys.readouterr().out
    for text in (
        f"erlangen {erlangen.__version__}",
        f"torch {torch.__version__}",
        "no GPU",
        "row_norm: 7 of 7 checks passed",
        "1.00 times as fast as torch.optim.AdamW(fused=True), at 2.50 of a copy's bandwidth",
        "1.00 times as fast as torch.optim.Muon",
    ):
        assert text in printed

    failing = [("row_norm of float32 parameters with float32 momentum", "all of it")]
    monkeypatch.setattr(report._C, "check_kernels", lambda device: failing)
    assert report.main() == 1
    printed = capsys.readouterr().out
    assert "row_norm: 0 of 1 checks passed" in printed and f"{failing[0][0]}: all of it" in printed
