"""A step gives the same bits whatever the number of threads and the CPU's instructions: every rule,
odd sizes, any memory."""

import cpu_clones
import erlangen
import pytest
import torch
from conftest import ROOT
from erlangen import _C
from oracles import DTYPES
from state_helpers import same_bits

TRANSPOSE = {"transpose": True}
STANDARD, GRAM = {"ns_method": "standard"}, {"ns_method": "gram"}
WIDE, TALL, SQUARE, SMALL = (65, 1001), (1001, 65), (257, 300), (40, 9, 8)

# By a kernel.
NORMS = [
    (options, shape)
    for options in (
        {"rule": "row_norm"},
        {"rule": "row_norm", "nesterov": True, "decay": "cautious"},
        {"rule": "row_norm", "center": True},
        {"rule": "column_norm"},
    )
    for shape in ((513, 257), (65, 5001), (100_000, 3), (3, 100, 165))
]
NORMS += [
    ({"rule": "row_norm", "center": center, "stochastic_rounding": True}, SQUARE)
    for center in (False, True)
]
NORMS += [
    ({"rule": "row_norm", "layout": [TRANSPOSE, {"pairs": order, "dim": -2}]}, shape)
    for order in ("interleaved", "concatenated")
    for shape in ((101, 3002), (7, 130, 302))
]
POLAR = [
    *(({"rule": "spectral", **form}, s) for form in (STANDARD, GRAM) for s in (WIDE, SQUARE)),
    ({"rule": "spectral", **STANDARD}, SMALL),
    ({"rule": "spectral"}, TALL),
    ({"rule": "spectral", "decay": "cautious", "stochastic_rounding": True}, SQUARE),
    *(({"rule": "right_spectral"}, shape) for shape in (TALL, SQUARE, SMALL)),
    *(({"rule": "left_spectral"}, shape) for shape in (WIDE, SQUARE, SMALL)),
    # Batches of vectors.
    ({"rule": "spectral", **STANDARD}, (3, 512, 1)),
    ({"rule": "right_spectral"}, (2, 1, 128)),
    ({"rule": "left_spectral"}, (2, 128, 1)),
]
# By the same kernels, with ATen's operations in between.
MORE = [
    *(
        ({"rule": "hybrid", "order": order, "center": center}, shape)
        for order in ("row_then_polar", "polar_then_row")
        for center in (False, True)
        for shape in (SQUARE, SMALL)
    ),
    *(({"rule": "right_spectral", "center": True}, shape) for shape in (TALL, SMALL)),
    *(({"rule": "spectral", "alpha": alpha}, WIDE) for alpha in (-0.5, 1.0)),
    *(({"rule": "right_spectral", "alpha": 1.0}, shape) for shape in ((70_001, 8), SQUARE)),
]
OTHERS = [
    ({"rule": "left_spectral", "momentum_order": "polar_first"}, WIDE),
    ({"rule": "spectral", "support": "gradient"}, SQUARE),
    *(({"rule": "adamw"}, shape) for shape in ((70_001,), (513, 257))),
    ({"rule": "adamw", "decay": "cautious"}, (513, 257)),
]
CASES = [(True, *case) for case in NORMS + POLAR + MORE] + [(False, *case) for case in OTHERS]


def misaligned(x):
    return x.new_empty(x.numel() + 1)[1:].view_as(x).copy_(x)


def apart(x):
    """Rows that neither begin where a vector does nor follow each other."""
    *outer, rows, cols = (1, *x.shape)
    return x.new_empty(*outer, 2 * rows, cols + 3)[..., ::2, 1 : cols + 1].view_as(x).copy_(x)


def steps(start, grads, place, options):
    """Where two steps leave the parameter and its state."""
    p = torch.nn.Parameter(place(start))
    optimizer = erlangen.Equivariant([{"params": [p], **options}], lr=0.1)
    for p.grad in grads:
        optimizer.step()
    return [p, *optimizer.state[p].values()]


def problem(shape, dtype, place):
    return torch.randn(shape).to(dtype), [place(torch.randn(shape).to(dtype)) for _ in range(2)]


@pytest.mark.parametrize("place", [torch.clone, misaligned, apart])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("by_kernel, options, shape", CASES, ids=str)
def test_one_and_two_threads(by_kernel, options, shape, dtype, place):
    start, grads = problem(shape, dtype, place)
    threads, results, runs = torch.get_num_threads(), [], _C.kernel_count()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            results.append(steps(start, grads, place, options))
    finally:
        torch.set_num_threads(threads)
    assert all(map(same_bits, *results)) and not results[0][0].equal(start)
    assert not by_kernel or _C.kernel_count() - runs == 4


def test_kernels_are_compiled_for_every_instruction_set():
    sources = (ROOT / "kernels" / "cpu").glob("*.cpp")
    marked = sum(file.read_text().count("\nERLANGEN_CPU_CLONES ") for file in sources)
    kernels = cpu_clones.clones()
    assert len(kernels) == marked * bool(cpu_clones.LEVELS)
    assert all(parts.keys() == {"slot", *cpu_clones.LEVELS} for parts in kernels.values())


@pytest.mark.parametrize("place", [torch.clone, misaligned, apart])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options, shape", NORMS + POLAR, ids=str)
def test_every_instruction_set(options, shape, dtype, place):
    """Those that this machine has; the loader's choice is one of them."""
    start, grads = problem(shape, dtype, place)
    runs, expected = _C.kernel_count(), steps(start, grads, place, options)
    for level in cpu_clones.SUPPORTED:
        with cpu_clones.running(level):
            assert all(map(same_bits, steps(start, grads, place, options), expected)), level
    assert _C.kernel_count() - runs == 2 * (1 + len(cpu_clones.SUPPORTED))
