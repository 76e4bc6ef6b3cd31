"""What each option of a group does to a step."""

import math
from dataclasses import replace

import erlangen
import pytest
import torch
from erlangen import _C
from oracles import DTYPES, RULES, Rule, Step, adamw
from rule_helpers import (
    assert_near,
    check_steps,
    like,
    one_thread,  # noqa: F401
    options_of,
    rule_id,
    storage_error,
)

# Exact polar factors: the tests of the rules are about polynomials, these are not.
KINDS = [Rule(rule, steps=None) for rule in RULES]
KINDS.append(Rule("hybrid", "polar_then_row", steps=None))
kinds = pytest.mark.parametrize("rule", KINDS, ids=lambda r: f"{r.rule}-{r.order}")


def optimizer_of(shape=(6, 4), dtype=torch.float32, device="cpu", **options):
    param = torch.nn.Parameter(torch.randn(shape, device=device).to(dtype))
    options = {"rule": "spectral", "lr": 0.1, **options}
    return param, erlangen.Equivariant([{"params": [param], **options}])


def step_with(param, optimizer, grad):
    param.grad = grad.to(param.dtype).to(param.device)
    optimizer.step()
    return param.detach().clone()


@kinds
@pytest.mark.parametrize("order", ["momentum_first", "polar_first"])
@pytest.mark.parametrize("nesterov", [None, True, False])
def test_momentum(rule, order, nesterov, device):
    step = Step(rule, lr=0.1, momentum=0.8, nesterov=nesterov, momentum_order=order)
    check_steps(step, (6, 4), torch.float64, device, count=3)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
def test_momentum_value(momentum, device):
    check_steps(Step(Rule("row_norm"), lr=0.1, momentum=momentum), (6, 4), torch.float32, device)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize(
    "rule", [r for r in KINDS if r.is_polar and r.order == "row_then_polar"], ids=lambda r: r.rule
)
def test_polar_first_takes_the_norm_of_this_gradient(rule, alpha, device):
    rule = replace(rule, alpha=alpha, adjust_lr_fn="original")
    step = Step(rule, lr=0.1, momentum_order="polar_first")
    check_steps(step, (6, 4), torch.float64, device, count=3)


@kinds
@pytest.mark.parametrize("decay", ["decoupled", "cautious"])
@pytest.mark.parametrize("maximize", [False, True])
def test_decay(rule, decay, maximize, device):
    step = Step(rule, lr=0.1, weight_decay=0.7, decay=decay, maximize=maximize)
    check_steps(step, (6, 4), torch.float64, device, count=3)


def test_cautious_decay_leaves_rows_without_gradient(device):
    param, optimizer = optimizer_of(rule="row_norm", decay="cautious", weight_decay=1.0)
    before = param.detach().clone()
    g = torch.randn(6, 4)
    g[2] = 0
    assert torch.equal(step_with(param, optimizer, g)[2], before[2])


ADJUST = ("match_rms_adamw", "original", "spectral_unclamped", "unit_rms_norm", "none")


@pytest.mark.parametrize("adjust", ADJUST)
@pytest.mark.parametrize("shape", [(8, 3), (3, 8), (2, 3, 8)], ids=str)
@pytest.mark.parametrize(
    "rule",
    KINDS + [replace(r, center=True) for r in KINDS if r.rule != "column_norm"],
    ids=rule_id,
)
def test_adjust_lr_fn(rule, adjust, shape, device):
    step = Step(replace(rule, adjust_lr_fn=adjust), lr=0.1)
    check_steps(step, shape, torch.float64, device, count=1)


# What a role stands for, but for lr: rule, and options other than the defaults.
ROLES = dict.fromkeys(
    ("attention", "mlp_in", "mlp_out", "expert_in", "expert_out", "dense"), (Rule("spectral"), {})
) | {
    "embedding": (Rule("row_norm"), {"update_scale": 5.0, "weight_decay": 0.0}),
    "lm_head": (Rule("row_norm", center=True), {"weight_decay": 0.0}),
    "router": (Rule("left_spectral", center=True), {"weight_decay": 0.0}),
}


@pytest.mark.parametrize("adjust", ADJUST)
@pytest.mark.parametrize("role", _C.role_names())
def test_steps_of_a_role(role, adjust, device):
    """Of the options that a role gives, and no other."""
    group = dict(_C.role_options(role, adjust))
    if role in ("lora", "other"):
        check_adamw((5, 3), torch.float64, device, group, weight_decay=0.01 * (role == "lora"))
        return
    rule, more = ROLES[role]
    if role == "embedding" and adjust not in ("match_rms_adamw", "none"):  # outputs along columns
        rule, more = Rule("column_norm"), {**more, "layout": [{"transpose": True}]}
    step = Step(replace(rule, adjust_lr_fn=adjust), **more)
    check_steps(step, (8, 3), torch.float64, device, group=group)


@kinds
def test_update_scale_spares_the_decay(rule, device):
    check_steps(
        Step(rule, lr=0.1, update_scale=5.0, weight_decay=0.5), (6, 4), torch.float64, device
    )


@pytest.mark.parametrize("decay", ["decoupled", "cautious"])
@pytest.mark.parametrize(
    "rule, layout, shape",
    [
        ("row_norm", None, (6, 4)),
        ("row_norm", None, (2, 6, 4)),
        ("hybrid", None, (6, 4)),
        ("right_spectral", None, (6, 4)),
        ("column_norm", [{"transpose": True}], (6, 4)),
        ("row_norm", [{"transpose": True}], (6, 4)),
        ("spectral", [{"heads": 2, "dim": -2}], (6, 4)),
        ("spectral", [{"heads": 2, "dim": -1}], (2, 6, 4)),
    ],
    ids=str,
)
def test_support_of_the_gradient(rule, layout, shape, decay, device):
    """Rows of the tensor as it is stored, whatever the layout."""
    grads = [torch.randn(shape, dtype=torch.float64) for _ in range(3)]
    for i, g in enumerate(grads):
        rows = g.view(-1, shape[-1])
        rows[i] = rows[i + 2] = 0
    step = Step(Rule(rule), lr=0.1, weight_decay=0.5, layout=layout, decay=decay)
    check_steps(step, shape, torch.float32, device, grads=grads)
    step = replace(step, support="gradient")
    check_steps(step, shape, torch.float32, device, grads=grads)


@pytest.mark.parametrize("rule", ["row_norm", "spectral", "adamw"])
def test_maximize_is_the_negative_gradient(rule, device):
    results = []
    for sign in (1, -1):
        torch.manual_seed(1)
        param, optimizer = optimizer_of(device=device, rule=rule, maximize=sign < 0)
        for _ in range(2):
            step_with(param, optimizer, torch.randn(6, 4) * sign)
        results.append(param.detach())
    assert torch.equal(*results)


@pytest.mark.parametrize("rule", [*RULES, "adamw"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lr_0_changes_nothing(rule, dtype, device):
    rounding = {"stochastic_rounding": True} if dtype == torch.bfloat16 else {}
    for more in ({}, {"decay": "cautious"}, {"support": "gradient"}, rounding):
        param, optimizer = optimizer_of(device=device, dtype=dtype, rule=rule, lr=0.0, **more)
        before = param.detach().clone()
        for _ in range(2):
            assert torch.equal(step_with(param, optimizer, torch.randn(6, 4)), before)


@pytest.mark.parametrize("rule", [*RULES, "adamw"])
def test_zero_gradient_on_fresh_state_changes_nothing_without_decay(rule, device):
    param, optimizer = optimizer_of(device=device, rule=rule, weight_decay=0.0)
    before = param.detach().clone()
    assert torch.equal(step_with(param, optimizer, torch.zeros(6, 4)), before)


@pytest.mark.parametrize("rule", [*RULES, "adamw"])
def test_parameters_without_gradient_are_skipped(rule, device):
    params = [torch.nn.Parameter(torch.randn(6, 4, device=device)) for _ in range(3)]
    before = params[1].detach().clone()
    optimizer = erlangen.Equivariant([{"params": params, "rule": rule}], lr=0.1, weight_decay=0.5)
    for p in params[::2]:
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert torch.equal(params[1], before)
    assert params[1] not in optimizer.state
    assert len(optimizer.state) == 2


def test_state_has_the_chosen_dtype(device):
    for dtype in DTYPES:
        for choice in ("auto", "bfloat16"):
            for rule in ("row_norm", "spectral", "adamw"):
                param, optimizer = optimizer_of(dtype=dtype, rule=rule, state_dtype=choice)
                step_with(param, optimizer, torch.randn(6, 4))
                auto = torch.float64 if dtype == torch.float64 else torch.float32
                expected = torch.bfloat16 if choice == "bfloat16" else auto
                state = {k: v for k, v in optimizer.state[param].items() if k != "step"}
                assert {v.dtype for v in state.values()} == {expected}


@kinds
@pytest.mark.parametrize("order", ["momentum_first", "polar_first"])
def test_bfloat16_state_rounds_only_what_is_stored(rule, order, device):
    """A step's direction is taken before the momentum is rounded: to the bit, at each step."""
    options = options_of(Step(rule, lr=0.1, momentum_order=order))
    param, optimizer = optimizer_of(device=device, **options, state_dtype="bfloat16")
    plain, other = optimizer_of(device=device, **options)
    plain.data.copy_(param.data)
    for _ in range(3):
        g = torch.randn(6, 4)
        assert torch.equal(step_with(param, optimizer, g), step_with(plain, other, g))
        full = other.state[plain]["momentum_buffer"]
        stored = optimizer.state[param]["momentum_buffer"]
        assert torch.equal(stored, full.bfloat16())
        full.copy_(stored)


# Stochastic rounding


def rounded(value, device, *, seed=0, steps=1, others=0, count=4096, rule="row_norm", start=1.0):
    """bfloat16 parameters of `start`, moved by `value` each step."""
    params = [
        torch.nn.Parameter(torch.ones(count, 1, dtype=torch.bfloat16, device=device))
        for _ in range(others + 1)
    ]
    optimizer = erlangen.Equivariant(
        [{"params": params, "rule": rule}],
        lr=abs(value),
        weight_decay=0.0,
        adjust_lr_fn="none",
        stochastic_rounding=True,
        seed=seed,
        momentum=0.0,
    )
    result = []
    for _ in range(steps):
        for p in params:
            p.data.fill_(start)
            p.grad = torch.full_like(p, -math.copysign(1.0, value))
        optimizer.step()
        result.append([p.detach().float().flatten() for p in params])
    return result


@pytest.mark.parametrize("rule", ["row_norm", "adamw"])
@pytest.mark.parametrize("start", [1.0, -1.0])
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
def test_stochastic_rounding_is_unbiased(fraction, start, rule, device):
    """Goes on with probability `fraction`: within five standard deviations of the binomial."""
    count = 65536
    spacing = 2.0**-7 * start  # of bfloat16 beyond 1
    (values,) = rounded(fraction * spacing, device, count=count, rule=rule, start=start)[0]
    assert set(values.unique().tolist()) == {start, start + spacing}
    on = float((values != start).double().mean())
    assert abs(on - fraction) < 5 * math.sqrt(fraction * (1 - fraction) / count)


@pytest.mark.parametrize("rule", ["row_norm", "adamw"])
def test_stochastic_rounding_of_nan(rule, device):
    """Noise makes no number of NaN, and no NaN of a number."""
    start = torch.tensor([math.nan, -1.0, 0.0, 1.0], dtype=torch.bfloat16).repeat(64, 16)
    param, optimizer = optimizer_of(
        (64, 64), torch.bfloat16, device, rule=rule, stochastic_rounding=True
    )
    param.data.copy_(start)
    after = step_with(param, optimizer, torch.randn(64, 64)).cpu()
    assert torch.equal(after.isnan(), start.isnan())
    g = torch.randn(64, 64)
    g[5, 3] = math.nan
    param.data.fill_(1.0)
    after = step_with(param, optimizer, g).cpu()
    touched = torch.zeros(64, 64, dtype=torch.bool)
    touched[5, 3] = True
    if rule == "row_norm":
        touched[5] = True
    assert torch.equal(after.isnan(), touched)


def test_stochastic_rounding_is_reproducible_and_independent(device):
    value = 2.0**-8
    a = rounded(value, device, seed=3, steps=2, others=1)
    b = rounded(value, device, seed=3, steps=2, others=1)
    other = rounded(value, device, seed=4, steps=2, others=1)
    flat_a = [t for step in a for t in step]
    assert all(torch.equal(x, y) for x, y in zip(flat_a, [t for s in b for t in s], strict=True))
    draws = flat_a + [t for step in other for t in step]
    # Other steps, tensors and seeds agree with each other as coins do.
    for i, x in enumerate(draws):
        for y in draws[:i]:
            agreeing = float((x == y).double().mean())
            assert abs(agreeing - 0.5) < 5 * 0.5 / math.sqrt(x.numel())


def test_stochastic_rounding_keeps_what_bfloat16_can_say(device):
    (values,) = rounded(2.0**-7, device)[0]
    assert (values == 1 + 2.0**-7).all()
    (values,) = rounded(-(2.0**-6), device, rule="column_norm", count=1)[0]
    assert (values == 1 - 2.0**-6).all()


@pytest.mark.parametrize(
    "template", [torch.empty(16, 8), torch.empty(8, 16).T, torch.empty(16, 24)[:, ::3]],
    ids=["rows", "columns", "apart"],
)  # fmt: skip
@pytest.mark.parametrize("rule", [*RULES, "adamw"])
def test_stochastic_rounding_gives_a_neighbour(rule, template, device):
    """Of what the unrounded step would have given."""
    param = torch.nn.Parameter(like(torch.randn(16, 8).bfloat16(), template).to(device))
    twin = torch.nn.Parameter(param.detach().float())
    group = {"rule": rule, "lr": 0.1, "stochastic_rounding": True}
    g = torch.randn(16, 8).bfloat16()
    after, unrounded = (
        step_with(p, erlangen.Equivariant([{"params": [p], **group}]), g) for p in (param, twin)
    )
    if rule == "adamw":  # whose float32 step is torch's kernel, and rounds otherwise
        room = 4 * torch.finfo(torch.float32).eps * unrounded.abs()
    else:
        room = torch.zeros_like(unrounded)
    # Both neighbours of x keep its leading bits: toward zero, and the next one away from it.
    low = (unrounded.view(torch.int32) & ~0xFFFF).view(torch.float32)
    high = ((unrounded.view(torch.int32) & ~0xFFFF) + 0x10000).view(torch.float32)
    after = after.float()
    between = (after >= torch.minimum(low, high) - room) & (
        after <= torch.maximum(low, high) + room
    )
    assert between.all()
    assert (after != low).any() and (after != high).any()


# adamw


@pytest.mark.parametrize(
    "more", [{}, {"maximize": True}, {"betas": (0.8, 0.99), "eps": 1e-6}], ids=str
)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_adamw_is_torchs(dtype, tolerance, more, device):
    base = torch.randn(6, 9, device=device, dtype=dtype)
    for view in (base, base.T, base[:, ::2], base[0], base[0, :1].squeeze()):
        mine = torch.nn.Parameter(view.detach())
        theirs = torch.nn.Parameter(view.detach().clone(memory_format=torch.contiguous_format))
        group = {"params": [mine], "rule": "adamw", **more}
        optimizer = erlangen.Equivariant([group], lr=0.1, weight_decay=0.3)
        expected = torch.optim.AdamW(
            [theirs], lr=0.1, weight_decay=0.3, **{"betas": (0.9, 0.95), **more}
        )
        for _ in range(5):
            g = torch.randn(view.shape, device=device, dtype=dtype)
            mine.grad, theirs.grad = g, g.clone()
            optimizer.step()
            expected.step()
            assert (mine - theirs).abs().max() <= tolerance * (1 + theirs.abs().max())


def check_adamw(shape, dtype, device, group, **options):
    """Each step against the formula, from the state that the library is in."""
    param = torch.nn.Parameter(torch.randn(shape).to(dtype).to(device))
    optimizer = erlangen.Equivariant([{"params": [param], **group}], lr=0.1)
    m = v = torch.zeros(shape, dtype=torch.float64)
    unit = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    for number in range(1, 4):
        before, g = param.detach().cpu().clone(), torch.randn(shape).to(dtype)
        g[number] = 0
        after = step_with(param, optimizer, g)
        expected, m, v = adamw(before, g, m, v, step=number, lr=0.1, **options)
        assert_near(after, expected, 32 * unit + storage_error(dtype, expected))
        for name, value in (("exp_avg", m), ("exp_avg_sq", v)):
            stored = optimizer.state[param][name]
            room = 4 * unit * float(value.norm()) + storage_error(stored.dtype, value)
            assert_near(stored, value, room)
        state = optimizer.state[param]
        m, v = (state[name].double().cpu().clone() for name in ("exp_avg", "exp_avg_sq"))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"update_scale": 3.0},
        {"decay": "cautious"},
        {"support": "gradient"},
        {"decay": "cautious", "support": "gradient", "update_scale": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("state_dtype", ["auto", "bfloat16"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adamw_against_its_formula(dtype, state_dtype, more, device):
    group = {"rule": "adamw", "weight_decay": 0.3, "state_dtype": state_dtype, **more}
    check_adamw((5, 3), dtype, device, group, weight_decay=0.3, **more)
