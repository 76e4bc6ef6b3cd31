"""What each option of a group does to a step."""

import math

import erlangen
import pytest
import torch
from oracles import DTYPES, RULES, Rule, Step, adamw
from rule_helpers import assert_near, check_steps, one_thread, options_of  # noqa: F401

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


@kinds
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_polar_first_takes_the_norm_of_this_gradient(rule, alpha, device):
    if alpha and not (rule.is_polar and rule.order == "row_then_polar"):
        return
    rule = Rule(rule.rule, rule.order, alpha=alpha, adjust_lr_fn="original", steps=None)
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


@kinds
@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original", "unit_rms_norm", "none"])
@pytest.mark.parametrize("shape", [(8, 3), (3, 8), (2, 3, 8)], ids=str)
def test_adjust_lr_fn(rule, adjust, shape, device):
    rule = Rule(rule.rule, rule.order, adjust_lr_fn=adjust, steps=None)
    check_steps(Step(rule, lr=0.1), shape, torch.float64, device, count=1)


@kinds
def test_lr_scale_spares_the_decay(rule, device):
    check_steps(Step(rule, lr=0.1, lr_scale=5.0, weight_decay=0.5), (6, 4), torch.float64, device)


@pytest.mark.parametrize("rule", ["row_norm", "hybrid", "right_spectral"])
def test_support_of_the_gradient(rule, device):
    grads = [torch.randn(6, 4, dtype=torch.float64) for _ in range(3)]
    for i, g in enumerate(grads):
        g[i] = g[i + 2] = 0
    step = Step(Rule(rule), lr=0.1, weight_decay=0.5, support="gradient")
    check_steps(step, (6, 4), torch.float32, device, grads=grads)
    check_steps(Step(Rule(rule), lr=0.1), (6, 4), torch.float32, device, grads=grads)


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
    """This step's direction is taken before the momentum is rounded."""
    step = Step(rule, lr=0.1, momentum_order=order)
    torch.manual_seed(2)
    shape = (6, 4)
    g = torch.randn(shape, dtype=torch.float64).float()
    param, optimizer = optimizer_of(
        shape, device=device, **options_of(step), state_dtype="bfloat16"
    )
    plain, other = optimizer_of(shape, device=device, **options_of(step))
    plain.data.copy_(param.data)
    assert_near(step_with(param, optimizer, g), step_with(plain, other, g).cpu().double(), 1e-6)
    full = other.state[plain]["momentum_buffer"]
    stored = optimizer.state[param]["momentum_buffer"]
    assert ((stored.float() - full).abs() <= full.abs() * 2.0**-8).all()


# Stochastic rounding


def rounded(value, device, *, seed=0, steps=1, others=0, count=4096, rule="row_norm"):
    """bfloat16 parameters of 1, moved by `value` each step."""
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
            p.data.fill_(1.0)
            p.grad = torch.full_like(p, -math.copysign(1.0, value))
        optimizer.step()
        result.append([p.detach().float().flatten() for p in params])
    return result


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
def test_stochastic_rounding_is_unbiased(fraction, device):
    """Goes up with probability `fraction`: within five standard deviations of the binomial."""
    count = 65536
    spacing = 2.0**-7  # of bfloat16 above 1
    (values,) = rounded(fraction * spacing, device, count=count)[0]
    assert set(values.unique().tolist()) == {1.0, 1.0 + spacing}
    up = float((values > 1).double().mean())
    assert abs(up - fraction) < 5 * math.sqrt(fraction * (1 - fraction) / count)


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


@pytest.mark.parametrize("rule", [*RULES, "adamw"])
def test_stochastic_rounding_gives_a_neighbour(rule, device):
    """Of what the unrounded step would have given."""
    torch.manual_seed(5)
    param, optimizer = optimizer_of(
        (16, 8), torch.bfloat16, device, rule=rule, stochastic_rounding=True
    )
    plain, other = optimizer_of((16, 8), torch.float32, device, rule=rule)
    plain.data.copy_(param.data.float())
    g = torch.randn(16, 8).bfloat16().float()
    off = step_with(param, optimizer, g).float() - step_with(plain, other, g)
    assert (off.abs() <= plain.detach().abs() * 2.0**-7 * 1.01 + 1e-6).all()


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lr_scale", [1.0, 3.0])
def test_adamw_against_its_formula(dtype, lr_scale, device):
    param, optimizer = optimizer_of((5, 3), dtype, device, rule="adamw", lr_scale=lr_scale)
    m = v = torch.zeros(5, 3, dtype=torch.float64)
    unit = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    for number in range(1, 4):
        before, g = param.detach().cpu().clone(), torch.randn(5, 3).to(dtype)
        after = step_with(param, optimizer, g)
        expected, m, v = adamw(
            before, g, m, v, step=number, lr=0.1, weight_decay=1e-2, lr_scale=lr_scale
        )
        room = 32 * unit + torch.finfo(dtype).eps / 2 * float(expected.norm())
        assert_near(after, expected, room)
