"""The C++ and the Python optimizer, equal to the bit: every rule, layout and option; in each run
gradients are missing, learning rates change, and both are saved and loaded."""

import erlangen
import pytest
import torch
from conftest import CMake
from state_helpers import same_bits
from torch import nn
from trajectory_cases import HALVE_LR, SAVE_STEP, STEPS, cases, with_tensors

CASES = cases()
STATE = ("momentum_buffer", "exp_avg", "exp_avg_sq", "step")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the C++ program; for matrices this small a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def filled():
    return {name: with_tensors(name, plain) for name, plain in CASES.items()}


@pytest.fixture(scope="module")
def cpp(filled, cmake_build, tmp_path_factory) -> dict[str, list[torch.Tensor]]:
    """What the C++ program made of all cases, in one run of it."""
    folder = tmp_path_factory.mktemp("trajectory")
    torch.save(list(filled.values()), folder / "cases.pt")
    program = next(p for p in cmake_build.rglob("trajectory") if p.is_file())
    CMake().run(program, folder / "cases.pt", folder / "trajectories.pt")
    # Our own program's file; LibTorch notes the types of lists, which weights_only does not read.
    return torch.load(folder / "trajectories.pt", weights_only=False)


def start(case, values=None):
    groups, params = [], []
    for group in case["groups"]:
        here = [
            nn.Parameter((values[len(params) + i] if values else p).detach().clone())
            for i, p in enumerate(group["params"])
        ]
        groups.append({"params": here, **group["options"]})
        params += here
    return params, getattr(erlangen, case["preset"])(groups, **case["defaults"])


def through_file(case, params, optimizer, file):
    torch.save(optimizer.state_dict(), file)
    params, optimizer = start(case, params)
    optimizer.load_state_dict(torch.load(file, weights_only=True))
    return params, optimizer


def trajectory(case, file) -> list[torch.Tensor]:
    """Parameters after each step, then the state tensors of each parameter."""
    params, optimizer = start(case)
    out = []
    for step, grads in enumerate(case["grads"]):
        if step == SAVE_STEP:
            params, optimizer = through_file(case, params, optimizer, file)
        for group in optimizer.param_groups if step in HALVE_LR else ():
            group["lr"] /= 2
        for param, grad in zip(params, grads, strict=True):
            param.grad = None if grad is None else grad.clone()
        optimizer.step()
        out += [p.detach().clone() for p in params]
    for param in params:
        out += [optimizer.state[param][name] for name in STATE if name in optimizer.state[param]]
    return out


@pytest.mark.parametrize("name", CASES)
def test_trajectory(name, filled, cpp, tmp_path):
    ours, theirs = trajectory(filled[name], tmp_path / "optimizer.pt"), cpp[name]
    count = sum(len(group["params"]) for group in filled[name]["groups"])
    assert len(ours) == len(theirs) > STEPS * count
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        where = f"step {i // count}, parameter {i % count}" if i < STEPS * count else "state"
        assert same_bits(a, b), where
    first = [p for group in filled[name]["groups"] for p in group["params"]]
    last = ours[(STEPS - 1) * count : STEPS * count]
    moved = [not torch.equal(a, b) for a, b in zip(first, last, strict=True)]
    assert all(moved) and all(t.isfinite().all() for t in ours)
