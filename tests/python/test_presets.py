"""The preset classes: erlangen.Muon beside torch.optim.Muon, PolarGrad and the others."""

import copy

import erlangen
import pytest
import torch
from bounds import full_precision, polar_spread, roundoff
from oracles import DTYPES, RULES, Rule, Step, steps_of
from rule_helpers import assert_near, one_thread, storage_error  # noqa: F401

JORDAN = (3.4445, -4.775, 2.0315)


def scales_of_torch():
    """The names that this torch's Muon takes: spectral_unclamped is newer than the others."""
    found = []
    for name in ("original", "match_rms_adamw", "spectral_unclamped", "unit_rms_norm", "none"):
        try:
            torch.optim.Muon([torch.nn.Parameter(torch.zeros(2, 2))], adjust_lr_fn=name)
        except ValueError:
            continue
        found.append(name)
    return found


SCALES = scales_of_torch()


def run(optimizer, param, grads):
    result = []
    for g in grads:
        param.grad = g.to(param)
        optimizer.step()
        result.append(param.detach().cpu().clone())
    return result


ARGUMENTS = [
    {},
    {"lr": 0.5},
    {"weight_decay": 0.0},
    {"weight_decay": 0.7},
    {"momentum": 0.0},
    {"momentum": 0.5},
    {"nesterov": False},
    {"ns_coefficients": (2.0, -1.5, 0.5)},
    {"eps": 1.0},  # above the norm of the first averages
    {"ns_steps": 1},
    {"ns_steps": 9},
    *({"adjust_lr_fn": name} for name in SCALES),
    {
        "weight_decay": 0.2,
        "momentum": 0.8,
        "nesterov": False,
        "ns_coefficients": (1.5, -0.5, 0.0),
        "eps": 2.0,
        "ns_steps": 7,
        "adjust_lr_fn": "match_rms_adamw",
    },
]


def rule_of(ns_coefficients=JORDAN, ns_steps=5, eps=1e-7, **_):
    steps = steps_of(ns_coefficients, ns_steps)
    return Rule("spectral", steps=steps, norm_at_least=eps)


def ratio_of(shape, adjust_lr_fn=None, **_):
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * max(shape) ** 0.5
    if adjust_lr_fn == "spectral_unclamped":
        return (shape[0] / shape[1]) ** 0.5
    return max(1, shape[0] / shape[1]) ** 0.5


@pytest.fixture
def in_float64(monkeypatch):
    """torch.optim.Muon with its iteration in float64. The clone: it goes on in place.

    It converts by `bfloat16()`, from torch 2.15 on by `to(dtype=torch.bfloat16)`.
    """
    to = torch.Tensor.to

    def to_float64(t, *args, **kwargs):
        if kwargs.get("dtype") is torch.bfloat16:
            return t.double().clone()
        return to(t, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", to_float64)
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda t: t.double().clone())


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (6, 6)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_muon_is_torchs(arguments, dtype, shape, device, in_float64):
    """Twenty steps of the two, torch's in float64 throughout.

    Gradients are given, so that errors of steps add up and nothing amplifies them. A bfloat16
    parameter is rounded once a step, and torch's then goes on from there.
    """
    options = {"lr": 0.1, **arguments}
    mine = torch.nn.Parameter(torch.randn(shape).to(dtype).to(device))
    theirs = torch.nn.Parameter(mine.detach().cpu().double().clone())
    optimizer = erlangen.Muon([mine], ns_dtype=full_precision(dtype), **options)
    expected = torch.optim.Muon([theirs], **options)
    rule, beta = rule_of(**options), options.get("momentum", 0.95)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    u, room = roundoff(compute), 0.0
    for number in range(20):
        g = torch.randn(shape).to(dtype)
        run(optimizer, mine, [g])
        run(expected, theirs, [g])
        x = expected.state[theirs]["momentum_buffer"]
        x = g.double().lerp(x, beta) if options.get("nesterov", True) else x
        spread = polar_spread(x, rule, compute, False, input_error=4 * u)
        room += options["lr"] * ratio_of(shape, **options) * spread + 8 * u * float(
            theirs.detach().norm()
        )
        stored = storage_error(dtype, theirs.detach()) if dtype == torch.bfloat16 else 0.0
        assert_near(mine, theirs.detach(), room + stored, f"step {number}")
        if dtype == torch.bfloat16:
            theirs.data.copy_(mine)
            room = 0.0
    assert room < (1e-4 if compute == torch.float32 else 1e-12) * float(theirs.detach().norm())


def test_scales_of_torch():
    assert SCALES[:2] == ["original", "match_rms_adamw"]
    assert set(SCALES[2:]) <= {"spectral_unclamped"}
    newer = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15)
    assert not newer or "spectral_unclamped" in SCALES


@pytest.mark.parametrize("shape", [(8, 2), (2, 8), (6, 6)], ids=str)
def test_spectral_unclamped_without_torchs(shape, device):
    """Orthogonal matrices times √(m/n), whichever torch it is."""
    param = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64, device=device))
    options = {"adjust_lr_fn": "spectral_unclamped", "ns_method": "exact", "lr": 1.0}
    (after,) = run(erlangen.Muon([param], **options), param, [torch.randn(shape)])
    singular = torch.linalg.svdvals(after)
    torch.testing.assert_close(singular, torch.full_like(singular, (shape[0] / shape[1]) ** 0.5))


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)], ids=str)
def test_muon_in_bfloat16_beside_torchs_own(shape, device):
    """Both multiply in bfloat16: one step, within what bfloat16 products may differ."""
    start, g = torch.randn(shape), torch.randn(shape)
    mine, theirs = (torch.nn.Parameter(start.clone().to(device)) for _ in range(2))
    (a,) = run(erlangen.Muon([mine], lr=0.1, ns_dtype="bfloat16"), mine, [g])
    (b,) = run(torch.optim.Muon([theirs], lr=0.1), theirs, [g])
    room = 2 * 0.1 * ratio_of(shape) * polar_spread(g, rule_of(), torch.bfloat16, False)
    assert_near(a, b.double(), room + 1e-6)


def test_muon_has_torchs_signature_and_defaults():
    import inspect

    mine = inspect.signature(erlangen.Muon).parameters
    theirs = inspect.signature(torch.optim.Muon).parameters
    assert list(mine)[: len(theirs)] == list(theirs)
    for name, parameter in theirs.items():
        assert mine[name].default == parameter.default, name


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-7, 1e-8, 1e-20, 0.0])
def test_muon_shrinks_small_gradients_as_torch_does(size, device, in_float64):
    """eps is the least norm: below it the update is no longer of unit size."""
    g = torch.randn(4, 6, dtype=torch.float64)
    g = g / g.norm() * size
    results = []
    for cls in (erlangen.Muon, torch.optim.Muon):
        param = torch.nn.Parameter(torch.zeros(4, 6, dtype=torch.float64, device=device))
        results += run(cls([param], lr=1.0, momentum=0.0), param, [g])
    assert_near(results[0], results[1], 1e-12 * float(results[1].norm()))


def test_muon_takes_batches(device):
    """Three dimensions, which torch.optim.Muon refuses: each matrix as if alone, to the bit."""
    start, g = torch.randn(3, 6, 4), torch.randn(3, 6, 4)
    stacked = torch.nn.Parameter(start.clone().to(device))
    run(erlangen.Muon([stacked], lr=0.1), stacked, [g])
    for i in range(3):
        alone = torch.nn.Parameter(start[i].clone().to(device))
        run(erlangen.Muon([alone], lr=0.1), alone, [g[i]])
        assert torch.equal(stacked[i], alone)


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (4, 2, 1, 3, 2), (8, 6, 1, 1)], ids=str)
def test_muon_takes_kernels(shape, device):
    """Four and five dimensions: one matrix [out, rest], to the bit; the state has their shape."""
    start, grads = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
    kernel = torch.nn.Parameter(start.clone().to(device))
    matrix = torch.nn.Parameter(start.flatten(1).clone().to(device))
    optimizer = erlangen.Muon([kernel, torch.nn.Parameter(torch.ones(6, 4, device=device))], lr=0.1)
    rows = f"{shape[0]}×{start[0].numel()}"
    assert rows in optimizer.explain() and "6×4" in optimizer.explain()
    a = run(optimizer, kernel, grads)
    b = run(erlangen.Muon([matrix], lr=0.1), matrix, [g.flatten(1) for g in grads])
    assert all(torch.equal(x.flatten(1), y) for x, y in zip(a, b, strict=True))
    assert optimizer.state[kernel]["momentum_buffer"].shape == shape
    # In memory's other order, and as what a layout says otherwise.
    if len(shape) == 4:
        last = kernel.detach().clone(memory_format=torch.channels_last)
        twin = torch.nn.Parameter(last)
        twin.data.copy_(start)
        (*_, c) = run(erlangen.Muon([twin], lr=0.1), twin, grads)
        torch.testing.assert_close(c, a[-1], rtol=1e-3, atol=1e-3)
    batch = torch.nn.Parameter(start.clone().to(device))
    single = torch.nn.Parameter(start.clone().to(device))
    one = run(erlangen.Muon([batch], lr=0.1, layout=None), batch, grads)
    group = {"params": [single], "layout": None}
    two = run(erlangen.Muon([group], lr=0.1), single, grads)
    assert torch.equal(one[-1], two[-1]) and not torch.equal(one[-1], a[-1])


def test_kernels_of_a_checkpoint_from_before(device):
    """Version 0.1 took each filter for a matrix: such a run goes on as it was."""
    kernel = torch.nn.Parameter(torch.randn(4, 3, 3, 3, device=device))
    twin = torch.nn.Parameter(kernel.detach().clone())
    optimizer, other = erlangen.Muon([kernel], layout=None), erlangen.Muon([twin])
    grads = [torch.randn(4, 3, 3, 3) for _ in range(2)]
    run(optimizer, kernel, grads)
    twin.data.copy_(kernel)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    a, b = run(optimizer, kernel, grads), run(other, twin, grads)
    assert torch.equal(a[-1], b[-1])


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


@pytest.mark.parametrize("shape", [(9, 7), (8, 24)], ids=str)
@pytest.mark.parametrize("rule", [*RULES, "adamw"])
def test_bits_repeat(rule, shape, device):
    """The same start and gradients, the same bits; and whatever else is in the step."""
    grads = [torch.randn(shape) for _ in range(3)]
    start = torch.randn(shape)
    results = []
    for others in ([], [], [shape], [(5, 3)], [shape, shape]):  # of its shape: in one batch
        param = torch.nn.Parameter(start.clone().to(device))
        extra = [torch.nn.Parameter(torch.randn(other, device=device)) for other in others]
        for p in extra:
            p.grad = torch.randn_like(p)
        groups = [{"params": [*extra, param], "rule": rule}]
        results.append(run(erlangen.Equivariant(groups, lr=0.1), param, grads)[-1])
    assert all(torch.equal(results[0], result) for result in results[1:])


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
