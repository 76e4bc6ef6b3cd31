"""Runs the library beside its oracles; shared by the tests of rules, layouts and options."""

import itertools
import math

import erlangen
import pytest
import torch
from bounds import full_precision, roundoff, tolerance
from erlangen import _C
from oracles import Rule, Step, logical_matrices
from torch import Tensor


@pytest.fixture(autouse=True)
def one_thread():
    """Matrices of a few rows: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def storage_error(dtype: torch.dtype, value: Tensor) -> float:
    """One rounding of each entry, subnormals included."""
    info = torch.finfo(dtype)
    smallest = info.tiny * info.eps
    return info.eps / 2 * float(value.norm()) + smallest * math.sqrt(value.numel())


def assert_near(actual: Tensor, expected: Tensor, bound: float, what: str = "") -> None:
    actual = actual.detach().cpu().double()
    assert actual.shape == expected.shape
    assert actual.isfinite().all(), f"{what}: not finite"
    error = float((actual - expected).norm())
    assert error <= bound, f"{what}: off by {error:.3e}, allowed {bound:.3e}"


def options_of(step: Step) -> dict:
    """The library's names for what an oracle step does; None polynomials are the exact method."""
    rule = step.rule
    return {
        "rule": rule.rule,
        "order": rule.order,
        "center": rule.center,
        "alpha": rule.alpha,
        "adjust_lr_fn": rule.adjust_lr_fn,
        "lr": step.lr,
        "update_scale": step.update_scale,
        "weight_decay": step.weight_decay,
        "decay": step.decay,
        "layout": step.layout,
        "support": step.support,
        "momentum": step.momentum,
        "nesterov": step.nesterov,
        "momentum_order": step.momentum_order,
        "maximize": step.maximize,
        **({"ns_method": "exact"} if rule.steps is None else {"ns_coefficients": rule.steps}),
    }


def cancellation(rule: Rule, x: Tensor, terms: Tensor) -> float:
    """How much larger the summands of x are than x: in the rows or columns that a rule makes equal,
    else in the whole matrix."""
    if rule.rule in ("spectral", "right_spectral", "left_spectral"):
        size, of_terms = x.norm().unsqueeze(0), terms.norm().unsqueeze(0)
    else:
        dim = -2 if rule.rule == "column_norm" else -1
        size, of_terms = x.norm(dim=dim), terms.norm(dim=dim)
    return float((of_terms[size > 0] / size[size > 0]).max()) if (size > 0).any() else 1.0


def step_bound(
    step: Step, before: Tensor, g: Tensor, m: Tensor, dtype: torch.dtype, ns_method: str = "auto"
) -> float:
    """Frobenius distance that rounding allows between a step and its oracle."""
    compute = compute_dtype(dtype)
    u = roundoff(compute)
    rule = step.rule
    x = -g.double() if step.maximize else g.double()
    if step.momentum_order == "momentum_first":
        x = step._averaged(x, m.double())[1]
    squares = 0.0
    # Averaging rounds each summand and the sum, which may be the smaller one.
    terms = x.abs()
    if step.momentum_order == "momentum_first":
        terms = step._averaged(g.double().abs(), m.double().abs())[1]
    for index in logical_matrices(step.layout, tuple(g.shape)):
        matrix, error = (t.reshape(-1)[index.reshape(-1)].reshape(index.shape) for t in (x, terms))
        first = 4 * u * cancellation(rule, matrix, error)
        bound = tolerance(rule, matrix, compute=compute, ns_method=ns_method, first=first)
        squares += (rule.scale(*index.shape) * bound) ** 2
    after, _ = step(before, g, m)
    update = float((after - before.double()).norm())
    moved = step.lr * step.update_scale * math.sqrt(squares)
    return moved + 4 * u * (float(before.double().norm()) + update) + storage_error(dtype, after)


def like(x: Tensor, template: Tensor) -> Tensor:
    """x with the strides of `template`, in memory of its own."""
    storage = torch.zeros(
        1 + sum((n - 1) * s for n, s in zip(template.shape, template.stride(), strict=True)),
        dtype=x.dtype,
        device=x.device,
    )
    return storage.as_strided(template.shape, template.stride()).copy_(x)


def where_step_leaves(starts: list[Tensor], grads: list[Tensor], **group) -> list[Tensor]:
    """All parameters in one step of their kernel; each keeps the strides of its start."""
    params = [torch.nn.Parameter(like(start, start)) for start in starts]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    count = _C.kernel_count()
    erlangen.Equivariant([{"params": params, **group}], lr=0.1).step()
    assert _C.kernel_count() == count + len(params)
    return [p.detach().cpu() for p in params]


def check_steps(
    step: Step,
    shape: tuple,
    dtype: torch.dtype,
    device: torch.device,
    *,
    template: Tensor | None = None,
    grad_template: Tensor | None = None,
    grads: list[Tensor] | None = None,
    count: int = 2,
    group: dict | None = None,
    **more,
) -> None:
    """Each step of the optimizer against the oracle's, from the state the library is in.

    Args:
        group: what the optimizer is told, if not every option of `step`.
        more: options besides those of `step`. Products are as precise as the rest without them.
    """
    more = {"ns_dtype": full_precision(dtype), **more}
    start = torch.randn(shape, dtype=torch.float64).to(dtype).to(device)
    param = torch.nn.Parameter(start if template is None else like(start, template))
    group = options_of(step) if group is None else group
    optimizer = erlangen.Equivariant([{"params": [param], **group, **more}])
    grads = grads or [torch.randn(shape, dtype=torch.float64) for _ in range(count)]
    m = torch.zeros(shape, dtype=torch.float64)
    for number, g in enumerate(grads):
        before = param.detach().cpu().clone()
        g = g.to(dtype).to(device)
        param.grad = g if grad_template is None else like(g, grad_template)
        optimizer.step()
        expected, m_expected = step(before, g.cpu(), m)
        bound = step_bound(step, before, g.cpu(), m, dtype, more.get("ns_method", "auto"))
        assert_near(param, expected, bound, f"step {number}")
        m = optimizer.state[param]["momentum_buffer"].cpu().double().clone()
        u = roundoff(compute_dtype(dtype))
        if step.momentum_order == "momentum_first":
            assert_near(m, m_expected, 4 * u * float(m_expected.norm() + g.cpu().double().norm()))


def rule_id(rule: Rule) -> str:
    parts = [rule.rule]
    if rule.rule == "hybrid":
        parts.append(rule.order)
    parts += ["centered"] * rule.center + [f"alpha{rule.alpha}"] * (rule.alpha != 0)
    return "-".join(parts + ["exact"] * (rule.steps is None))


memory_orders = pytest.mark.parametrize(
    "template",
    [
        torch.empty(8, 6),
        torch.empty(16, 12)[::2, ::2],
        torch.empty(6, 8).T,
        torch.empty(8, 6, 2).contiguous(),
        torch.empty(8, 2, 3, 2).contiguous(memory_format=torch.channels_last),
        torch.empty(2, 8, 6).transpose(0, 1),
    ],
    ids=["plain", "apart", "columns", "stack", "channels_last", "swapped"],
)

LAYOUT_STEPS = [
    *(
        {"pairs": order, "dim": dim}
        for order in ("concatenated", "interleaved")
        for dim in (-2, -1)
    ),
    *({"heads": n, "dim": dim} for n in (2, 4) for dim in (-2, -1)),
    {"sections": [2, 6], "dim": -2},
    {"sections": [2, 4], "dim": -1},
    {"transpose": True},
]


def fitting_layouts(shape, rule: str):
    """Layouts of one or two steps, with and without flatten before them, that fit the shape."""
    tails = [list(steps) for n in (1, 2) for steps in itertools.product(LAYOUT_STEPS, repeat=n)]
    for layout in tails + [[{"flatten": True}, *tail] for tail in tails]:
        try:
            group = {"params": [torch.nn.Parameter(torch.zeros(shape))], "rule": rule}
            erlangen.Equivariant([group], layout=layout)
        except ValueError:
            continue
        yield layout
