"""Each rule against its float64 oracle: as a bare function, and through steps of the optimizer."""

from dataclasses import replace

import erlangen
import erlangen.functional as F
import pytest
import torch
from bounds import full_precision, roundoff, tolerance
from oracles import (
    DTYPES,
    POLAR_RULES,
    RULES,
    Rule,
    Step,
    apply,
    center,
    with_singular_values,
)
from rule_helpers import (
    assert_near,
    check_steps,
    compute_dtype,
    like,
    one_thread,  # noqa: F401
    options_of,
    rule_id,
    storage_error,
)

ORDERS = ("row_then_polar", "polar_then_row")
HALF = (torch.bfloat16, torch.float16)
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
POLAR = [rule for rule in BARE if rule.is_polar]


def call(rule: Rule, x: torch.Tensor, **more) -> torch.Tensor:
    if not rule.is_polar:
        return getattr(F, rule.rule)(x)
    if rule.rule == "hybrid":
        more |= {"order": rule.order, "center": rule.center}
    if rule.steps is None:
        more["ns_method"] = "exact"
    more = {"ns_dtype": full_precision(x.dtype), **more}
    return getattr(F, rule.rule)(x, alpha=rule.alpha, **more)


def well_conditioned(shape: tuple, dtype: torch.dtype) -> torch.Tensor:
    count = torch.Size(shape[:-2]).numel()
    sigma = torch.linspace(0.3, 1, min(shape[-2:]))
    matrices = [with_singular_values(sigma, *shape[-2:]) for _ in range(count)]
    return torch.stack(matrices).reshape(shape).to(dtype)


def check(rule: Rule, x: torch.Tensor, device, **more) -> None:
    """Each matrix within its own bound."""
    y = call(rule, x.to(device), **more)
    assert y.dtype == x.dtype and y.shape == x.shape
    for one, found in zip(
        x.double().reshape(-1, *x.shape[-2:]), y.reshape(-1, *x.shape[-2:]), strict=True
    ):
        expected = apply(rule, one)
        bound = tolerance(rule, one, compute=compute_dtype(x.dtype), **more)
        assert_near(found, expected, bound + storage_error(x.dtype, expected), rule_id(rule))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", BARE + WITH_ALPHA + EXACT, ids=rule_id)
def test_function(rule, dtype, device):
    for shape in SHAPES:
        check(rule, well_conditioned(shape, dtype), device)


@pytest.mark.parametrize("ns_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rule", POLAR + WITH_ALPHA[-4:], ids=rule_id)
def test_function_with_products_in(ns_dtype, rule, device):
    check(rule, well_conditioned((6, 10), torch.float32), device, ns_dtype=ns_dtype)


def rank_two(*shape) -> torch.Tensor:
    """Of rank 2 exactly in every dtype, and so are its heads; none of its rows is the mean's."""
    while True:
        x = torch.randint(-3, 4, (*shape[:-1], 2)) @ torch.randint(
            -3, 4, (*shape[:-2], 2, shape[-1])
        )
        x = x.double()
        halves = [x.reshape(-1, *x.shape[-2:]), x.reshape(-1, x.shape[-2] // 2, x.shape[-1])]
        sigma = torch.cat([torch.linalg.svdvals(h)[:, 1] for h in halves])
        rows = torch.cat(
            [t.norm(dim=-1).flatten() for h in halves for t in (h, h - h.mean(-2, True))]
        )
        if min(sigma.min(), rows.min(), x.norm(dim=-2).min()) > 0.5:
            return x


@pytest.mark.parametrize("shape", [(12, 7), (8, 8), (3, 6, 13)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", ["auto", "standard", "gram", "exact"])
@pytest.mark.parametrize("rule", [r for r in BARE if not r.center], ids=rule_id)
def test_rank_two(rule, method, dtype, shape, device):
    """What float32 has of a third singular value is noise, and has to stay out of the result."""
    if method == "exact":
        rule = replace(rule, steps=None)
    more = {"ns_method": method} if rule.is_polar else {}
    x = rank_two(*shape)
    check(rule, x.to(dtype), device, **more)
    for layout in (None, [{"heads": 2, "dim": -2}]):
        check_steps(Step(rule, lr=0.1, layout=layout), shape, dtype, device, grads=[x], **more)
    if rule.rule != "column_norm":
        step = Step(replace(rule, center=True), lr=0.1)
        check_steps(step, shape, dtype, device, grads=[x], **more)


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", BARE, ids=rule_id)
def test_strided_inputs(rule, dtype, device):
    """Views are as good as contiguous tensors, and stay as they were."""
    base = well_conditioned((3, 8, 10), dtype).to(device)
    for view in (
        base.mT,
        base[:, ::2],
        base[..., 1::3],
        base.permute(1, 2, 0),
        base[:, :1].expand(3, 4, 10),
    ):
        # Centering equal rows leaves nothing but rounding.
        if not (rule.center and view.stride(-2) == 0):
            before = view.clone()
            check(rule, view, device)
            assert torch.equal(view, before)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (2, 5, 5)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", BARE + WITH_ALPHA, ids=rule_id)
def test_sizes_of_gradients(rule, dtype, shape, device):
    """2^k X gives (2^k)^alpha times the result of X, to the bit; fp16 over its whole range."""
    x = well_conditioned(shape, dtype).to(device)
    power = 0.0 if rule.rule == "hybrid" else rule.alpha  # the norm of its unit rows
    # Even, for the square root of alpha 0.5.
    for k in (-22, -12, 12, 14) if dtype == torch.float16 else (-100, -64, 64, 100):
        scaled = x * 2.0**k
        one = scaled.double().mul(2.0**-k).to(dtype)  # without what fp16 no longer holds
        if dtype == torch.float16:  # of which ‖X‖_* may leave the range; it computes in float32
            one, scaled = one.float(), scaled.float()
        assert torch.equal(call(rule, scaled), call(rule, one) * 2.0 ** (k * power))
    for size in (1e-3, 1e3) if dtype == torch.float16 else (1e-30, 1e30):
        if rule.alpha == 0.0 or dtype != torch.float16:
            check(rule, (x.double() * size).to(dtype).cpu(), device)


# Matrices of these sizes in one batch: one large, one small, and one of an expert without tokens.
SIZES = torch.tensor([1e30, 0.0, 1e-30, 1.0], dtype=torch.float64).view(-1, 1, 1)
# Rows of these sizes in one matrix. After the other rules a row's size is relative to the largest,
# and float32 has none of 1e-60.
OF_ROWS = [Rule("row_norm"), Rule("hybrid"), Rule("hybrid", steps=None)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", BARE + WITH_ALPHA + EXACT, ids=rule_id)
def test_matrices_of_all_sizes_in_one_batch(rule, dtype, device):
    for shape in [(4, 5, 7), (4, 7, 5)]:
        check(rule, (well_conditioned(shape, torch.float64) * SIZES).to(dtype), device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", OF_ROWS, ids=rule_id)
def test_rows_of_all_sizes_in_one_matrix(rule, dtype, device):
    x = well_conditioned((4, 7), torch.float64) * SIZES[:, 0]
    check(rule, x.to(dtype), device)
    check_steps(Step(rule, lr=0.1), (4, 7), dtype, device, grads=[x, x.flip(0), -x.roll(1, 0)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_center(shape, dtype, device):
    x = (torch.randn(shape, dtype=torch.float64) + 3).to(dtype)
    expected = torch.stack([center(m) for m in x.reshape(-1, *shape[-2:])]).reshape(shape)
    # A mean of m numbers, a difference; then the result's own rounding.
    u = roundoff(compute_dtype(dtype))
    bound = (2 + shape[-2] ** 0.5) * u * float(x.double().norm())
    assert_near(F.center(x.to(device)), expected, bound + storage_error(dtype, expected))


# Through the optimizer


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", BARE + CENTERED + WITH_ALPHA[::2] + EXACT[::3], ids=rule_id)
def test_step(rule, dtype, device):
    for shape in SHAPES:
        check_steps(Step(rule, lr=0.1), shape, dtype, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", CENTERED, ids=rule_id)
def test_a_single_row_has_no_deviation_from_its_mean(rule, dtype, device):
    """Centered it is exactly zero, and does not move."""
    p = torch.nn.Parameter(torch.randn(2, 1, 5, device=device).to(dtype))
    before = p.detach().clone()
    group = {"params": [p], **options_of(Step(rule, weight_decay=0.0))}
    optimizer = erlangen.Equivariant([group], lr=0.1)
    for _ in range(2):
        p.grad = torch.randn_like(p)
        optimizer.step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", BARE + CENTERED, ids=rule_id)
def test_step_of_strided_parameters(rule, dtype, device):
    base = torch.empty(6, 10)
    # Exact, for speed: strides are no matter of the polynomials.
    rule = replace(rule, steps=None)
    for template in (base.T, base[::2], base[:, 1::2]):
        shape = tuple(template.shape)
        check_steps(Step(rule, lr=0.1), shape, dtype, device, template=template)
        check_steps(Step(rule, lr=0.1), shape, dtype, device, grad_template=template)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(
    "template", [torch.empty(6, 4), torch.empty(4, 6).T], ids=["rows", "columns"]
)
@pytest.mark.parametrize("rule", BARE + CENTERED, ids=rule_id)
def test_half_precision_rounds_the_step_of_float32_once(rule, template, dtype, device):
    """The parameter alone: gradient, momentum and update are float32's, to the bit."""
    param = torch.nn.Parameter(like(torch.randn(6, 4).to(dtype), template).to(device))
    twin = torch.nn.Parameter(param.detach().float())
    assert twin.stride() == param.stride()
    params = (param, twin)
    optimizers = [
        erlangen.Equivariant([{"params": [p], **options_of(Step(rule, lr=0.1))}]) for p in params
    ]
    for _ in range(3):
        with torch.no_grad():
            twin.copy_(param)
        param.grad = torch.randn_like(param)
        twin.grad = param.grad.float()
        for optimizer in optimizers:
            optimizer.step()
        assert torch.equal(param, twin.to(dtype))
        momentum = [o.state[p]["momentum_buffer"] for o, p in zip(optimizers, params, strict=True)]
        assert torch.equal(*momentum)


@pytest.mark.parametrize("rule", BARE + CENTERED, ids=rule_id)
@pytest.mark.parametrize(
    "sizes", [(1e-30, 1e-30), (1e30, 1e30), (1.0, 1e-30, 1e30, 1e-30)], ids=str
)
def test_step_with_tiny_and_huge_gradients(rule, sizes, device):
    for shape in [(6, 4), (2, 4, 7)]:
        grads = [torch.randn(shape, dtype=torch.float64) * size for size in sizes]
        check_steps(Step(rule, lr=0.1), shape, torch.float32, device, grads=grads)


@pytest.mark.parametrize("rule", [r for r in BARE + CENTERED if not r.alpha], ids=rule_id)
def test_step_with_matrices_of_all_sizes(rule, device):
    """Each as if alone, and one without gradient keeps its weights but for decay."""
    grads = [torch.randn(4, 5, 7, dtype=torch.float64) * SIZES for _ in range(2)]
    check_steps(Step(rule, lr=0.1), (4, 5, 7), torch.float32, device, grads=grads)


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
