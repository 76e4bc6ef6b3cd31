"""Each rule against its float64 oracle: as a bare function, and through steps of the optimizer."""

from dataclasses import replace

import erlangen
import erlangen.functional as F
import pytest
import torch
from bounds import tolerance
from oracles import DTYPES, POLAR_RULES, RULES, Rule, Step, apply, center, with_singular_values
from rule_helpers import (
    assert_near,
    check_steps,
    compute_dtype,
    one_thread,  # noqa: F401
    rule_id,
    storage_error,
)

ORDERS = ("row_then_polar", "polar_then_row")
SHAPES = [(12, 5), (5, 12), (6, 6), (1, 7), (7, 1), (3, 4, 6), (2, 2, 6, 3)]
BARE = [Rule(rule) for rule in RULES if rule != "hybrid"] + [
    Rule("hybrid", order, centered) for order in ORDERS for centered in (False, True)
]
WITH_ALPHA = [
    Rule(rule, center=centered, alpha=alpha)
    for rule in POLAR_RULES
    for centered in ((False, True) if rule == "hybrid" else (False,))
    for alpha in (0.5, 1.0)
]
EXACT = [
    Rule(r.rule, r.order, r.center, r.alpha, steps=None) for r in BARE + WITH_ALPHA if r.is_polar
]
# Through the optimizer every rule but column_norm can be centered.
CENTERED = [
    Rule(rule, center=True, alpha=alpha)
    for rule in RULES
    for alpha in ((0.0, 1.0) if rule in POLAR_RULES else (0.0,))
    if rule != "column_norm"
] + [Rule("hybrid", "polar_then_row", True)]


def call(rule: Rule, x: torch.Tensor, **more) -> torch.Tensor:
    if not rule.is_polar:
        return getattr(F, rule.rule)(x)
    if rule.rule == "hybrid":
        more |= {"order": rule.order, "center": rule.center}
    if rule.steps is None:
        more["ns_method"] = "exact"
    return getattr(F, rule.rule)(x, alpha=rule.alpha, **more)


def well_conditioned(shape: tuple, dtype: torch.dtype) -> torch.Tensor:
    count = torch.Size(shape[:-2]).numel()
    sigma = torch.linspace(0.3, 1, min(shape[-2:]))
    matrices = [with_singular_values(sigma, *shape[-2:]) for _ in range(count)]
    return torch.stack(matrices).reshape(shape).to(dtype)


def check(rule: Rule, x: torch.Tensor, device, **more) -> None:
    y = call(rule, x.to(device), **more)
    assert y.dtype == x.dtype
    expected = apply(rule, x.double())
    matrices = x.double().reshape(-1, *x.shape[-2:])
    bounds = [tolerance(rule, m, compute=compute_dtype(x.dtype), **more) for m in matrices]
    bound = sum(b**2 for b in bounds) ** 0.5 + storage_error(x.dtype, expected)
    assert_near(y, expected, bound, rule_id(rule))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rule", BARE + WITH_ALPHA + EXACT, ids=rule_id)
def test_function(rule, shape, device):
    check(rule, well_conditioned(shape, torch.float32), device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", BARE + WITH_ALPHA, ids=rule_id)
def test_function_in_every_dtype(rule, dtype, device):
    for shape in [(9, 5), (5, 9)]:
        check(rule, well_conditioned(shape, dtype), device)


@pytest.mark.parametrize("ns_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rule", BARE + WITH_ALPHA[-4:], ids=rule_id)
def test_function_with_products_in(ns_dtype, rule, device):
    if rule.is_polar:
        check(rule, well_conditioned((6, 10), torch.float32), device, ns_dtype=ns_dtype)


@pytest.mark.parametrize("rule", BARE + EXACT[:6], ids=rule_id)
def test_function_on_rank_deficient(rule, device):
    for shape in [(9, 5), (5, 9), (6, 6)]:
        x = with_singular_values([1.0, 0.7, 0.5], *shape)
        if rule.rule != "hybrid":  # unit rows would change the rank's gap
            check(rule, x, device)


@pytest.mark.parametrize("rule", BARE + WITH_ALPHA + EXACT, ids=rule_id)
@pytest.mark.parametrize("shape", [(4, 6), (1, 5), (5, 1), (2, 3, 4)], ids=str)
def test_zeros_stay_zero(rule, shape, device):
    for dtype in DTYPES:
        zeros = torch.zeros(shape, dtype=dtype, device=device)
        assert torch.equal(call(rule, zeros), zeros)


def test_zero_rows_and_columns_stay_zero(device):
    x = torch.randn(2, 6, 8, device=device)
    x[0, 2], x[1, :, 3] = 0, 0
    for rule in BARE:
        y = call(rule, x)
        assert y.isfinite().all()
        if not rule.center:
            assert not y[0, 2].any() and not y[1, :, 3].any()


@pytest.mark.parametrize("rule", BARE, ids=rule_id)
def test_strided_inputs(rule, device):
    """Views give what their contiguous copies give, and stay as they were."""
    base = torch.randn(3, 8, 10, device=device)
    for view in (
        base.mT,
        base[:, ::2],
        base[..., 1::3],
        base.permute(1, 2, 0),
        base[:, :1].expand(3, 4, 10),
    ):
        before = view.clone()
        expected = call(rule, view.contiguous())
        bound = 1e-4 * float(expected.norm())  # another memory order may sum in another one
        assert_near(call(rule, view), expected.cpu().double(), bound)
        assert torch.equal(view, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", BARE + WITH_ALPHA, ids=rule_id)
def test_sizes_of_gradients(rule, dtype, device):
    """1e-30 and 1e+30 give the direction of 1, to the bit by powers of two; fp16 over its range."""
    x = well_conditioned((6, 9), dtype).to(device)
    powers = (-12, 12) if dtype == torch.float16 else (-100, 100)
    expected = call(Rule(rule.rule, rule.order, rule.center), x)
    for k in powers:
        scaled = x * 2.0**k
        # Entries that fp16 can no longer hold in full are another input.
        if not torch.equal(scaled / 2.0**k, x):
            x = scaled / 2.0**k
            expected = call(Rule(rule.rule, rule.order, rule.center), x)
        assert torch.equal(call(Rule(rule.rule, rule.order, rule.center), scaled), expected)
    for size in (1e-3, 1e3) if dtype == torch.float16 else (1e-30, 1e30):
        scaled = (x.double() * size).to(dtype)
        if rule.alpha == 0.0 or dtype != torch.float16:  # ‖X‖_* may leave fp16's range
            check(rule, scaled.cpu(), device)


def test_center(device):
    for shape in SHAPES:
        x = torch.randn(shape, dtype=torch.float64) + 3
        expected = torch.stack([center(m) for m in x.reshape(-1, *shape[-2:])]).reshape(shape)
        assert_near(F.center(x.to(device)), expected, 1e-14 * float(x.norm()))


# Through the optimizer


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", BARE + CENTERED + WITH_ALPHA[::2], ids=rule_id)
def test_step(rule, dtype, device):
    check_steps(Step(rule, lr=0.1), (8, 5), dtype, device)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rule", BARE + CENTERED + EXACT[::3], ids=rule_id)
def test_step_in_every_shape(rule, shape, device):
    # A single row has no deviation from its mean but rounding's, of which nothing is to be asked.
    if not (rule.center and shape[-2] == 1):
        check_steps(Step(rule, lr=0.1), shape, torch.float64, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", BARE + CENTERED, ids=rule_id)
def test_step_of_strided_parameters(rule, dtype, device):
    base = torch.empty(6, 10)
    # Exact, for speed: strides are no matter of the polynomials.
    rule = replace(rule, steps=None)
    for template in (base.T, base[::2], base[:, 1::2]):
        shape = tuple(template.shape)
        check_steps(Step(rule, lr=0.1), shape, dtype, device, template=template)
        check_steps(Step(rule, lr=0.1), shape, dtype, device, grad_template=template)


@pytest.mark.parametrize("rule", BARE, ids=rule_id)
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_step_with_tiny_and_huge_gradients(rule, size, device):
    grads = [torch.randn(6, 4, dtype=torch.float64) * size for _ in range(2)]
    check_steps(Step(rule, lr=0.1), (6, 4), torch.float32, device, grads=grads)


@pytest.mark.parametrize("rule", BARE + CENTERED, ids=rule_id)
def test_zero_gradient_changes_nothing_without_decay(rule, device):
    zeros = [torch.zeros(6, 4, dtype=torch.float64)] * 2
    check_steps(Step(rule, lr=0.1, weight_decay=0.0), (6, 4), torch.float32, device, grads=zeros)


@pytest.mark.parametrize("rule", ["row_norm", "right_spectral", "left_spectral", "hybrid"])
def test_centered_updates_leave_the_shared_shift_alone(rule, device):
    """The mean row only decays: by exactly (1 − lr·wd) a step, up to rounding."""
    p = torch.nn.Parameter(torch.randn(9, 4, dtype=torch.float64, device=device))
    group = {"params": [p], "rule": rule, "center": True, "weight_decay": 0.5}
    optimizer = erlangen.Equivariant([group], lr=0.1)
    mean = p.detach().mean(0)
    for _ in range(3):
        p.grad = torch.randn_like(p)
        optimizer.step()
        mean = mean * (1 - 0.1 * 0.5)
        assert (p.detach().mean(0) - mean).abs().max() < 1e-14
