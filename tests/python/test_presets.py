"""The preset classes: erlangen.Muon beside torch.optim.Muon, PolarGrad and the others."""

import erlangen
import pytest
import torch
from bounds import polar_spread, roundoff
from oracles import DTYPES, Rule, Step, muon, steps_of
from rule_helpers import assert_near, one_thread  # noqa: F401

ADJUST = [None, "original", "match_rms_adamw"]
JORDAN = (3.4445, -4.775, 2.0315)


def run(optimizer, param, grads):
    result = []
    for g in grads:
        param.grad = g.to(param)
        optimizer.step()
        result.append(param.detach().cpu().clone())
    return result


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (6, 6)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("adjust", ADJUST)
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_against_torchs_documented_algorithm(nesterov, adjust, dtype, shape, device):
    """Step by step, with products in the parameter's own precision."""
    param = torch.nn.Parameter(torch.randn(shape, dtype=dtype, device=device))
    options = {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.9, "nesterov": nesterov}
    optimizer = erlangen.Muon([param], adjust_lr_fn=adjust, **options)
    rule = Rule("spectral", steps=steps_of(JORDAN), norm_at_least=1e-7)
    buf = torch.zeros(shape, dtype=torch.float64)
    for _ in range(4):
        before, g = param.detach().cpu().clone(), torch.randn(shape, dtype=dtype)
        expected, buf_after = muon(
            before, g, buf, steps=rule.steps, eps=1e-7, adjust=adjust, **options
        )
        (after,) = run(optimizer, param, [g])
        x = 0.1 * g.double() + 0.9 * buf_after if nesterov else buf_after
        u = roundoff(dtype)
        ratio = 0.2 * max(shape) ** 0.5 if adjust == "match_rms_adamw" else None
        ratio = ratio or max(1, shape[0] / shape[1]) ** 0.5
        room = 0.1 * ratio * polar_spread(x, rule, dtype, False, input_error=4 * u)
        assert_near(after, expected, room + 8 * u * float(before.norm() + expected.norm()))
        buf = optimizer.state[param]["momentum_buffer"].cpu().double().clone()


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (6, 6)], ids=str)
@pytest.mark.parametrize("adjust", ADJUST)
@pytest.mark.parametrize("ns_dtype", ["auto", "bfloat16"])
def test_muon_beside_torchs_own(ns_dtype, adjust, shape, device):
    """torch multiplies in bfloat16: within what bfloat16 products may differ, over five steps."""
    start, grads = torch.randn(shape), [torch.randn(shape) for _ in range(5)]
    mine, theirs = (torch.nn.Parameter(start.clone().to(device)) for _ in range(2))
    a = run(erlangen.Muon([mine], lr=0.1, adjust_lr_fn=adjust, ns_dtype=ns_dtype), mine, grads)
    b = run(torch.optim.Muon([theirs], lr=0.1, adjust_lr_fn=adjust), theirs, grads)
    rule = Rule("spectral", steps=steps_of(JORDAN), norm_at_least=1e-7)
    ratio = 0.2 * max(shape) ** 0.5 if adjust == "match_rms_adamw" else None
    ratio = ratio or max(1, shape[0] / shape[1]) ** 0.5
    m, room = torch.zeros(shape, dtype=torch.float64), 0.0
    for number, g in enumerate(grads):
        m = 0.95 * m + 0.05 * g.double()
        spread = polar_spread(0.05 * g.double() + 0.95 * m, rule, torch.bfloat16, False)
        room += 0.1 * ratio * spread * (2 if ns_dtype == "bfloat16" else 1) + 1e-5
        assert_near(a[number], b[number].double(), room, f"step {number}")


def test_muon_has_torchs_signature_and_defaults():
    import inspect

    mine = inspect.signature(erlangen.Muon).parameters
    theirs = inspect.signature(torch.optim.Muon).parameters
    assert list(mine)[: len(theirs)] == list(theirs)
    for name, parameter in theirs.items():
        assert mine[name].default == parameter.default, name


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-7, 1e-8, 1e-20, 0.0])
def test_muon_shrinks_small_gradients_as_torch_does(size, device):
    """eps is the least norm: below it the update is no longer of unit size."""
    param = torch.nn.Parameter(torch.zeros(4, 6, dtype=torch.float64, device=device))
    optimizer = erlangen.Muon([param], lr=1.0, momentum=0.0)
    g = torch.randn(4, 6, dtype=torch.float64)
    g = g / g.norm() * size
    expected, _ = muon(
        torch.zeros(4, 6), g, torch.zeros(4, 6), lr=1.0, weight_decay=0.1, momentum=0.0,
        nesterov=True, steps=steps_of(JORDAN), eps=1e-7, adjust=None,
    )  # fmt: skip
    (after,) = run(optimizer, param, [g])
    assert_near(after, expected, 1e-12 * float(expected.norm()))


def test_muon_takes_batches(device):
    """Three dimensions, which torch.optim.Muon refuses: each matrix as if alone."""
    start, g = torch.randn(3, 6, 4), torch.randn(3, 6, 4)
    stacked = torch.nn.Parameter(start.clone().to(device))
    run(erlangen.Muon([stacked], lr=0.1), stacked, [g])
    for i in range(3):
        alone = torch.nn.Parameter(start[i].clone().to(device))
        run(erlangen.Muon([alone], lr=0.1), alone, [g[i]])
        assert torch.allclose(stacked[i], alone, rtol=1e-5, atol=1e-6)


PRESETS = {
    "PolarGrad": {"rule": "spectral", "nesterov": False, "alpha": 1.0, "adjust_lr_fn": "none"},
    "RowNorm": {"rule": "row_norm"},
    "RightSpectral": {"rule": "right_spectral"},
    "LeftSpectral": {"rule": "left_spectral"},
    "Hybrid": {"rule": "hybrid"},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_equivariant_with_a_rule(name, dtype, device):
    start = torch.randn(6, 4).to(dtype).to(device)
    grads = [torch.randn(6, 4) for _ in range(2)]
    bare = torch.nn.Parameter(start.clone())
    grouped = torch.nn.Parameter(start.clone())
    a = run(getattr(erlangen, name)([bare], lr=0.1), bare, grads)
    group = {"params": [grouped], **PRESETS[name]}
    b = run(erlangen.Equivariant([group], lr=0.1), grouped, grads)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("order", ["momentum_first", "polar_first"])
def test_polar_grad(order, device):
    """⟨m, U⟩U of the average, or the average of U times ⟨g, U⟩ of this gradient."""
    rule = Rule("spectral", alpha=1.0, steps=None)
    step = Step(rule, lr=0.01, nesterov=False, momentum_order=order)
    param = torch.nn.Parameter(torch.randn(6, 4, dtype=torch.float64, device=device))
    optimizer = erlangen.PolarGrad([param], lr=0.01, ns_method="exact", momentum_order=order)
    m = torch.zeros(6, 4, dtype=torch.float64)
    for _ in range(3):
        before, g = param.detach().cpu().clone(), torch.randn(6, 4, dtype=torch.float64)
        expected, _ = step(before, g, m)
        (after,) = run(optimizer, param, [g])
        assert_near(after, expected, 1e-12)
        m = optimizer.state[param]["momentum_buffer"].cpu().clone()


def test_the_scale_of_match_rms_adamw(device):
    """An update of root mean square 0.2, as AdamW's: for every kind of result."""
    for rule, more in [
        ("spectral", {"ns_method": "exact"}),
        ("row_norm", {}),
        ("column_norm", {}),
        ("hybrid", {"order": "polar_then_row"}),
    ]:
        param = torch.nn.Parameter(torch.zeros(20, 20, dtype=torch.float64, device=device))
        group = {"params": [param], "rule": rule, "lr": 1.0, **more}
        (after,) = run(erlangen.Equivariant([group]), param, [torch.randn(20, 20)])
        assert float(after.pow(2).mean().sqrt()) == pytest.approx(0.2, rel=1e-6)


def test_bits_repeat(device):
    """The same start and gradients, the same bits; and whatever else is in the step."""
    grads = [torch.randn(9, 7) for _ in range(3)]
    start = torch.randn(9, 7)
    for rule in ("row_norm", "spectral", "right_spectral", "left_spectral", "hybrid"):
        results = []
        for others in (0, 0, 1):
            param = torch.nn.Parameter(start.clone().to(device))
            groups = [{"params": [param], "rule": rule}]
            extra = torch.nn.Parameter(torch.ones(5, 3, device=device))
            extra.grad = torch.ones_like(extra)
            groups += [{"params": [extra], "rule": rule}] * others
            results.append(run(erlangen.Equivariant(groups, lr=0.1), param, grads)[-1])
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", ["row_norm", "column_norm", "spectral", "hybrid", "adamw"])
def test_steps_do_not_depend_on_earlier_memory(rule, dtype, device):
    start, grads = torch.randn(9, 7), [torch.randn(9, 7) for _ in range(2)]
    results = []
    for poison in (False, True):
        torch.use_deterministic_algorithms(poison)  # fills what torch allocates with NaN
        try:
            param = torch.nn.Parameter(start.clone().to(dtype).to(device))
            group = {"params": [param], "rule": rule}
            results.append(run(erlangen.Equivariant([group], lr=0.1), param, grads)[-1])
        finally:
            torch.use_deterministic_algorithms(False)
    assert torch.equal(*results)
    assert results[0].isfinite().all()


@pytest.mark.parametrize("name", ["Muon", *PRESETS])
def test_subclass_of_a_preset(name):
    class Mine(getattr(erlangen, name)):
        pass

    grads = [torch.randn(6, 4)]
    ours, theirs = (torch.nn.Parameter(torch.ones(6, 4)) for _ in range(2))
    run(Mine([ours]), ours, grads)
    run(getattr(erlangen, name)([theirs]), theirs, grads)
    assert torch.equal(ours, theirs)


def test_muon_groups_speak_torchs_terms():
    """eps is that of the norm, and None stands for "original", as in torch.optim.Muon's groups."""
    p, q = (torch.nn.Parameter(torch.ones(6, 4)) for _ in range(2))
    groups = [{"params": [p], "eps": 1e-3, "adjust_lr_fn": None}]
    optimizer = erlangen.Muon(groups)
    optimizer.add_param_group({"params": [q], "rule": "adamw", "eps": 1e-5})
    assert optimizer.param_groups[0]["ns_eps"] == 1e-3
    assert optimizer.param_groups[0]["adjust_lr_fn"] == "original"
    assert optimizer.param_groups[1]["eps"] == 1e-5
    assert "ns_eps" not in groups[0]
