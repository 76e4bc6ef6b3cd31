"""The fused kernels around the polar iteration against the reference operations and the oracles."""

import itertools
import math

import erlangen
import pytest
import torch
from bounds import roundoff
from erlangen import _C
from oracles import DTYPES, Rule, Step
from rule_helpers import (
    check_steps,
    compute_dtype,
    fitting_layouts,
    like,
    memory_orders,
    rule_id,
    storage_error,
)

# One step of a polynomial, so that what the iteration makes of different roundings is known: it
# takes X to 1.5 X - 0.5 X Xᵀ X, which moves at most 1.5 + 1.5 times as far as X of norm 1.
ONE_STEP = {"ns_coefficients": (1.5, -0.5, 0.0), "ns_steps": 1, "ns_method": "standard"}
GROWTH = 3.0


def steps(start, grads, state_dtype="auto", **options):
    """Where each step leaves the parameters, their momenta, and how often the kernel ran."""
    params = [torch.nn.Parameter(p.clone(memory_format=torch.preserve_format)) for p in start]
    group = {"params": params, "rule": "spectral", "state_dtype": state_dtype, **options}
    optimizer = erlangen.Equivariant([group], lr=0.1)
    count = _C.kernel_count()
    for g in grads:
        for p, own in zip(params, g, strict=True):
            p.grad = own
        optimizer.step()
    momenta = [optimizer.state[p]["momentum_buffer"].cpu() for p in params]
    return [p.detach().cpu() for p in params], momenta, _C.kernel_count() - count


def reference_steps(*args, **options):
    _C.use_kernels(False)
    try:
        return steps(*args, **options)
    finally:
        _C.use_kernels(True)


def check_near_reference(start, g, state_dtype="auto", ns_dtype="float32", **options):
    """One step of one parameter. Says whether the kernel took it."""
    options = {"update_scale": 0.5, **ONE_STEP, "ns_dtype": ns_dtype, **options}
    (fused,), (m,), runs = steps([start], [[g]], state_dtype, **options)
    (expected,), (m_expected,), none = reference_steps([start], [[g]], state_dtype, **options)
    assert none == 0
    dtype, compute = start.dtype, compute_dtype(start.dtype)
    u = roundoff(compute)
    products = max(u, roundoff(getattr(torch, ns_dtype)))
    m_norm = float(m_expected.double().norm())
    # The gradient alone: two products of it, differently rounded.
    bound = 4 * u * m_norm + 2 * storage_error(m.dtype, m_expected.double())
    assert float((m.double() - m_expected.double()).norm()) <= bound
    # Per unit of X: momentum and Nesterov's average, a cast, a norm of n squares, its root and
    # reciprocal, a product; then three products of the iteration, in its own type. On both sides.
    root = math.sqrt(start.numel())
    x = 8 * u + root * u + 2 * products
    room = 2 * (GROWTH * x + 3 * (products + root * u))
    # The polynomial makes no singular value smaller, so this is a relative error of the update,
    # whatever its scale. The update: what the parameter moved by, but for what it lost by decay.
    decay = 0.1 * options.get("weight_decay", 0.01) * float(start.double().norm())
    update = float((expected.double() - start.cpu().double()).norm()) + decay
    value = expected.double()
    bound = room * update + 4 * u * float(value.norm()) + 2 * storage_error(dtype, value)
    assert float((fused.double() - value).norm()) <= bound, options
    return runs


@pytest.mark.parametrize(
    "dtype, state_dtype",  # float64 with bfloat16 the kernel leaves to the reference
    [(dtype, "auto") for dtype in DTYPES]
    + [(dtype, "bfloat16") for dtype in DTYPES if dtype != torch.float64],
    ids=str,
)
@pytest.mark.parametrize("ns_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rule", ["spectral", "right_spectral", "left_spectral"])
def test_kernel_and_reference(rule, ns_dtype, dtype, state_dtype, device):
    for shape in [(1, 1), (7, 3), (3, 7), (5, 64), (130, 70), (70, 130), (2, 3, 5)]:
        for options in (
            {"weight_decay": 0.0},
            {"nesterov": True, "maximize": True},
            {"nesterov": False, "decay": "cautious", "weight_decay": 1.0, "adjust_lr_fn": "none"},
        ):
            start = torch.randn(shape).to(dtype).to(device)
            g = torch.randn(shape).to(dtype).to(device)
            assert check_near_reference(start, g, state_dtype, ns_dtype, rule=rule, **options) == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("shape", [(6, 40), (40, 6)], ids=str)
def test_sizes(shape, size, dtype, device):
    size = {1e-30: 1e-3, 1e30: 1e3}.get(size, 1.0) if dtype == torch.float16 else size
    grads = [torch.randn(shape, dtype=torch.float64) * size for _ in range(2)]
    count = _C.kernel_count()
    check_steps(Step(Rule("spectral"), lr=0.1), shape, dtype, device, grads=grads)
    assert _C.kernel_count() == count + 2


@memory_orders
@pytest.mark.parametrize("rule", ["spectral", "right_spectral"])
def test_every_layout_and_memory_order(rule, template, device):
    """What the kernel makes of a view is what the reference makes of it."""
    shape = tuple(template.shape)
    g = torch.randn(shape, device=device)
    start = like(torch.randn(shape, device=device), template)
    ran = 0
    for layout, grad in itertools.product(
        [None, *fitting_layouts(shape, "spectral")], [g, like(g, template)]
    ):
        ran += check_near_reference(start, grad, rule=rule, layout=layout)
    assert ran or template.stride()[-1] == 2  # elements apart are no run, but for pairs


# Layouts that models have are never left to the reference.
LAYOUTS = [
    (None, (12, 7)),
    (None, (3, 10, 6)),  # a stack of experts
    ([{"transpose": True}], (12, 7)),
    ([{"transpose": True}], (3, 6, 10)),
    ([{"heads": 4, "dim": -2}], (12, 5)),
    ([{"heads": 4, "dim": -1}], (5, 12)),
    ([{"sections": [3, 7], "dim": -2}], (10, 6)),
    ([{"sections": [3, 7], "dim": -1}], (6, 10)),
    ([{"sections": [4, 4, 8], "dim": -2}, {"heads": 2, "dim": -2}], (16, 5)),
    ([{"sections": [4, 8], "dim": -2}], (3, 12, 6)),
    ([{"pairs": "concatenated", "dim": -2}], (12, 7)),
    ([{"pairs": "interleaved", "dim": -2}], (12, 7)),
    ([{"flatten": True}], (6, 3, 2, 2)),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout, shape", LAYOUTS, ids=str)
def test_layouts(layout, shape, dtype, device):
    for more in ({}, {"nesterov": False, "maximize": True}, {"decay": "cautious"}):
        count = _C.kernel_count()
        step = Step(Rule("spectral"), lr=0.1, layout=layout, **more)
        check_steps(step, shape, dtype, device)
        assert _C.kernel_count() == count + 2


# Rules that do more between momentum and parameter than iterate.
MORE_THAN_ITERATION = [
    Rule("left_spectral", center=True),
    Rule("right_spectral", alpha=1.0),
    Rule("spectral", steps=None),
    Rule("hybrid", order="row_then_polar"),
    Rule("hybrid", order="row_then_polar", center=True),
    Rule("hybrid", order="polar_then_row", adjust_lr_fn="match_rms_adamw"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", MORE_THAN_ITERATION, ids=rule_id)
def test_momentum_and_parameter_around_more_than_the_iteration(rule, dtype, device):
    for layout, shape in LAYOUTS:
        if rule.center and layout and {"transpose", "flatten"}.isdisjoint(layout[0]):
            continue  # refused: its rows share no shift
        for more in ({}, {"nesterov": True, "maximize": True}):
            count = _C.kernel_count()
            check_steps(Step(rule, lr=0.1, layout=layout, **more), shape, dtype, device)
            assert _C.kernel_count() == count + 2


@pytest.mark.parametrize("rule", MORE_THAN_ITERATION, ids=rule_id)
def test_rows_of_any_size(rule, device):
    """Rows that have not had a gradient for long are still rows: nothing is divided by the length
    of the whole matrix before they are."""
    sizes = torch.logspace(-36, 10, 12, dtype=torch.float64).unsqueeze(-1)
    grads = [torch.randn(12, 8, dtype=torch.float64) * sizes for _ in range(2)]
    count = _C.kernel_count()
    check_steps(Step(rule, lr=0.1), (12, 8), torch.float32, device, grads=grads)
    assert _C.kernel_count() == count + 2


@pytest.mark.parametrize(
    "more",
    [
        {"momentum_order": "polar_first"},
        {"state_dtype": "bfloat16"},
        {"support": "gradient"},
    ],
    ids=str,
)
def test_refused(more, device):
    """What the kernel cannot do goes another way (tests of the options say it is right)."""
    dtype = torch.float64 if "state_dtype" in more else torch.float32
    start = torch.randn(6, 8, device=device, dtype=dtype)
    assert steps([start], [[torch.randn_like(start)]])[2] == 1
    assert steps([start], [[torch.randn_like(start)]], **more)[2] == 0


@pytest.mark.parametrize("decay", ["decoupled", "cautious"])
@pytest.mark.parametrize(
    "layout, shape",
    [
        (None, (1, 64)),
        (None, (64, 1)),
        ([{"heads": 4, "dim": -1}], (1, 64)),
        ([{"transpose": True}], (1, 16)),
        ([{"sections": [4, 16], "dim": -1}], (1, 20)),
        (None, (7, 1, 16)),
    ],
    ids=str,
)
def test_rounding_noise_is_the_references(layout, shape, decay, device):
    """Vectors of signs, as many as a power of four, are exact all along: the step before rounding
    is the same number in kernel and reference, and the noise must be the same bits."""

    def run(function):
        torch.manual_seed(0)
        start = [torch.randn(shape).bfloat16().to(device) for _ in range(2)]
        grads = [[torch.randn(shape).sign().bfloat16().to(device) for _ in start] for _ in range(3)]
        options = {"momentum": 0.0, "weight_decay": 0.0, "adjust_lr_fn": "none", "decay": decay}
        options |= {**ONE_STEP, "ns_dtype": "float32", "layout": layout, "seed": 12345678901234567}
        return function(start, grads, stochastic_rounding=True, **options)

    fused, expected = run(steps), run(reference_steps)
    assert fused[2] == 6 and expected[2] == 0
    for ours, theirs in zip(fused[0], expected[0], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_members_do_not_see_each_other(dtype, device):
    """A parameter gives the same bits alone and among others, of other groups and shapes too."""
    start = [torch.randn(20, 24).to(dtype).to(device) for _ in range(5)]
    grads = [torch.randn(20, 24).to(dtype).to(device) for _ in start]

    def run(members, **second):
        params = [torch.nn.Parameter(start[i].clone()) for i in members]
        stack = torch.nn.Parameter(torch.randn(3, 20, 24).to(dtype).to(device))
        groups = [{"params": params[:2]}, {"params": [*params[2:], stack], **second}]
        optimizer = erlangen.Equivariant(groups, rule="spectral", lr=0.1)
        for p, i in zip(params, members, strict=True):
            p.grad = grads[i]
        stack.grad = torch.randn_like(stack)
        optimizer.step()
        return {i: p.detach().cpu() for i, p in zip(members, params, strict=True)}

    count = _C.kernel_count()
    together = run([0, 1, 2, 3, 4], maximize=True, weight_decay=0.5)
    assert _C.kernel_count() == count + 6
    apart = run([1, 0], maximize=False)
    assert all(torch.equal(apart[i], together[i]) for i in apart)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_bad_gradients_stay_in_their_matrix(value, device):
    start, g = torch.zeros(3, 5, 6, device=device), torch.randn(3, 5, 6, device=device)
    g[1, 2, 3] = value
    (moved,), _, runs = steps([start], [[g]])
    assert runs == 1
    assert moved[1].isnan().any() and moved[[0, 2]].isfinite().all()


def test_zero_gradients_move_nothing(device):
    start = torch.randn(2, 5, 6, device=device)
    (moved,), _, runs = steps([start], [[torch.zeros_like(start)]], weight_decay=0.0)
    assert runs == 1 and torch.equal(moved, start.cpu())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_writes_nothing_beside_its_rows(dtype, device):
    storage = torch.full((12, 30), 7.0, dtype=dtype, device=device)
    param = torch.nn.Parameter(storage[1:11:2, 3:20])
    group = {"params": [param], "rule": "spectral", "weight_decay": 0.5}
    optimizer = erlangen.Equivariant([group], lr=1.0)
    param.grad = like(torch.randn(5, 17, dtype=dtype, device=device), param)
    count = _C.kernel_count()
    optimizer.step()
    assert _C.kernel_count() == count + 1
    untouched = torch.ones(12, 30, dtype=torch.bool)
    untouched[1:11:2, 3:20] = False
    assert (storage.cpu()[untouched] == 7).all()
    assert (storage.cpu()[~untouched] != 7).all()


def test_many_parameters_do_not_see_each_other(device):
    """More than a launch's arguments hold."""
    start = [torch.randn(12, 20, device=device) for _ in range(100)]
    grads = [torch.randn(12, 20, device=device) for _ in start]
    together, _, runs = steps(start, [grads])
    assert runs == 100
    for i in (0, 50, 99):
        assert torch.equal(steps(start[i : i + 1], [grads[i : i + 1]])[0][0], together[i])


def test_more_matrices_than_a_grid_dimension_holds(device):
    start, g = torch.randn(70000, 2, 8, device=device), torch.randn(70000, 2, 8, device=device)
    (together,), _, runs = steps([start], [[g]])
    assert runs == 1
    for part in (slice(3), slice(65534, 65538), slice(-3, None)):
        (alone,), _, _ = steps([start[part]], [[g[part]]])
        assert torch.equal(alone, together[part])
