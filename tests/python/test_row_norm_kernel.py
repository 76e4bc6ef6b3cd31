"""The fused row-norm step against the reference operations and the oracles."""

import itertools

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
    storage_error,
    where_step_leaves,
)

SHAPES = [(1, 1), (1, 7), (7, 1), (3, 5), (17, 64), (5, 100), (3, 4, 33), (2, 4097)]
# On CUDA rows of 128, 256 and 512 threads, those that take twice the registers, and two passes.
SHAPES += [(3, 2048), (2, 4096), (2, 8192), (2, 16384), (2, 32768), (2, 40000)]
SHAPES += [(70000, 2, 8)]  # more matrices than a grid's second and third dimension hold


def steps(start, grads, state_dtype="auto", **options):
    """Where each step leaves the parameter, the momentum, and how often the kernel ran."""
    param = torch.nn.Parameter(start.clone(memory_format=torch.preserve_format))
    group = {"params": [param], "rule": "row_norm", "state_dtype": state_dtype, **options}
    optimizer = erlangen.Equivariant([group], lr=0.1)
    count, places = _C.kernel_count(), []
    for g in grads:
        param.grad = g
        optimizer.step()
        places.append(param.detach().cpu().clone())
    return places, optimizer.state[param]["momentum_buffer"].cpu(), _C.kernel_count() - count


def reference_steps(*args, **options):
    _C.use_kernels(False)
    try:
        return steps(*args, **options)
    finally:
        _C.use_kernels(True)


@pytest.mark.parametrize(
    "dtype, state_dtype",  # float64 with bfloat16 the kernel leaves to the reference
    [(dtype, "auto") for dtype in DTYPES]
    + [(dtype, "bfloat16") for dtype in DTYPES if dtype != torch.float64],
    ids=str,
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.0},
        {"nesterov": True},
        {"maximize": True},
        {"support": "gradient"},
        {"decay": "cautious", "weight_decay": 1.0},
    ],
    ids=str,
)
def test_kernel_and_reference(options, shape, dtype, state_dtype, device):
    start = torch.randn(shape).to(dtype).to(device)
    g = torch.randn(shape).to(dtype).to(device)
    g[..., 0, :] = 0
    fused, m, runs = steps(start, [g], state_dtype, **options)
    expected, m_expected, none = reference_steps(start, [g], state_dtype, **options)
    assert runs == 1 and none == 0
    u = roundoff(compute_dtype(dtype))
    length = shape[-1] ** 0.5
    scale = 0.1 * 0.2 * length  # of a unit row
    rows = max(1, start.numel() // shape[-1]) ** 0.5
    value = expected[0].double()
    # Sum of n squares, root, division, product, difference; then one rounding to storage each.
    bound = (8 + length) * u * (scale * rows + float(value.norm())) + 2 * storage_error(
        dtype, value
    )
    assert float((fused[0].double() - value).norm()) <= bound
    stored = storage_error(m.dtype, m_expected.double())
    assert float((m.double() - m_expected.double()).norm()) <= 2 * stored


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_sizes(size, dtype, device):
    size = {1e-30: 1e-3, 1e30: 1e3}.get(size, 1.0) if dtype == torch.float16 else size
    grads = [torch.randn(6, 40, dtype=torch.float64) * size for _ in range(2)]
    count = _C.kernel_count()
    check_steps(Step(Rule("row_norm"), lr=0.1), (6, 40), dtype, device, grads=grads)
    assert _C.kernel_count() == count + 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(dtype, device):
    """Rows apart from each other are the kernel's; columns apart, the reference's: both right."""
    base = torch.empty(12, 30)
    for template, fused in [(base[::2], True), (base[:, 4:20], True), (base.T, False)]:
        count = _C.kernel_count()
        step = Step(Rule("row_norm"), lr=0.1)
        check_steps(step, tuple(template.shape), dtype, device, template=template)
        check_steps(step, tuple(template.shape), dtype, device, grad_template=template)
        assert _C.kernel_count() - count == (4 if fused else 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_writes_nothing_beside_its_rows(dtype, device):
    storage = torch.full((12, 30), 7.0, dtype=dtype, device=device)
    param = torch.nn.Parameter(storage[1:11:2, 3:20])
    optimizer = erlangen.RowNorm([param], lr=0.1)
    param.grad = like(torch.ones(5, 17, dtype=dtype, device=device), param)
    count = _C.kernel_count()
    optimizer.step()
    assert _C.kernel_count() == count + 1
    untouched = torch.ones(12, 30, dtype=torch.bool)
    untouched[1:11:2, 3:20] = False
    assert (storage.cpu()[untouched] == 7).all()
    assert (storage.cpu()[~untouched] != 7).all()


PAIRS = [{"pairs": "concatenated", "dim": -2}]
LAYOUTS = [
    (PAIRS, (12, 7)),
    (PAIRS, (2, 9)),
    (PAIRS, (12, 1)),
    (PAIRS, (3, 10, 33)),  # a stack of experts
    (PAIRS, (4, 3000)),
    (PAIRS, (2, 20000)),
    ([{"pairs": "interleaved", "dim": -2}], (3, 10, 33)),
    ([{"pairs": "interleaved", "dim": -1}, {"transpose": True}, {"transpose": True}], (5, 6)),
    ([{"heads": 4, "dim": -2}], (12, 5)),
    ([{"heads": 4, "dim": -1}], (5, 12)),
    ([{"heads": 2, "dim": -2}, *PAIRS], (12, 5)),
    ([{"sections": [3, 7], "dim": -2}], (10, 6)),
    ([{"sections": [3, 7], "dim": -1}], (6, 10)),
    ([{"sections": [4, 8], "dim": -2}, *PAIRS], (3, 12, 6)),
    ([{"flatten": True}], (6, 3, 2, 2)),
]


@pytest.mark.parametrize("support", ["all", "gradient"])
@memory_orders
def test_every_layout_and_memory_order(template, support, device):
    """What the kernel makes of a view is what the reference makes of it."""
    shape = tuple(template.shape)
    g = torch.randn(shape, device=device)
    g.view(-1, shape[-1])[::3] = 0
    start = like(torch.randn(shape, device=device), template)
    # A row has no more entries than the tensor; each is a sum of squares, a root, a division, a
    # product and a difference away from the gradient's.
    room = (8 + start.numel() ** 0.5) * roundoff(torch.float32)
    ran = 0
    grads = [g, like(g, template)]
    for layout, g in itertools.product(fitting_layouts(shape, "row_norm"), grads):
        options = {"layout": layout, "support": support}
        fused, _, runs = steps(start, [g], **options)
        expected, _, _ = reference_steps(start, [g], **options)
        moved = float((expected[0] - start.cpu()).norm()) + float(start.norm())
        assert float((fused[0] - expected[0]).norm()) <= room * moved, layout
        ran += runs
    # With that support the rows must be the tensor's own.
    assert ran or (support == "gradient" and not template.is_contiguous())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout, shape", LAYOUTS, ids=str)
def test_layouts(layout, shape, dtype, device):
    """None is copied."""
    for more in ({}, {"nesterov": True, "maximize": True}, {"decay": "cautious"}):
        count = _C.kernel_count()
        step = Step(Rule("row_norm"), lr=0.1, layout=layout, **more)
        check_steps(step, shape, dtype, device)
        assert _C.kernel_count() == count + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout, shape", LAYOUTS, ids=str)
def test_layouts_of_strided_tensors(layout, shape, dtype, device):
    """Parameter, gradient and momentum each have strides of their own; only a flattened row, in
    pieces then, is the reference's."""
    wide = torch.empty(*shape[:-1], shape[-1] + 3)[..., 1 : 1 + shape[-1]]
    apart = torch.empty(2 * shape[0], *shape[1:])[::2]
    step = Step(Rule("row_norm"), lr=0.1, layout=layout)
    for template, grad_template in [(wide, None), (None, wide), (apart, wide), (wide, apart)]:
        count = _C.kernel_count()
        check_steps(step, shape, dtype, device, template=template, grad_template=grad_template)
        assert _C.kernel_count() - count == 2 * (layout != [{"flatten": True}])


def test_strided_stacks_are_fused(device):
    """Experts apart from each other, of one tensor and not of the other."""
    wide, apart = torch.empty(3, 10, 36)[..., :33], torch.empty(6, 10, 33)[::2]
    for layout in (None, PAIRS, [{"sections": [4, 6], "dim": -2}]):
        step = Step(Rule("row_norm"), lr=0.1, layout=layout)
        for template, grad_template in [(apart, None), (None, apart), (apart, wide), (wide, apart)]:
            count = _C.kernel_count()
            check_steps(
                step,
                (3, 10, 33),
                torch.float32,
                device,
                template=template,
                grad_template=grad_template,
            )
            assert _C.kernel_count() == count + 2


@pytest.mark.parametrize(
    "more", [{"momentum_order": "polar_first"}, {"state_dtype": "bfloat16"}], ids=str
)
def test_refused(more, device):
    """What the kernel cannot do goes another way (tests of the options say it is right)."""
    dtype = torch.float64 if "state_dtype" in more else torch.float32
    start = torch.randn(6, 8, device=device, dtype=dtype)
    assert steps(start, [torch.randn_like(start)], **more)[2] == 0


# Stochastic rounding: rows of equal magnitudes have exact norms, so that the step before rounding
# is the same number in kernel and reference, and the noise must be the same bits.


@pytest.mark.parametrize("decay", ["decoupled", "cautious"])
@pytest.mark.parametrize(
    "layout, shape",
    [
        (None, (100, 1)),
        (None, (33, 16)),
        (None, (7, 1024)),
        (None, (2, 16384)),
        (None, (2, 65536)),
        (None, (3, 5, 64)),
        (PAIRS, (12, 32)),
        (PAIRS, (3, 10, 2)),
        ([{"heads": 2, "dim": -1}], (9, 32)),
        ([{"sections": [4, 16], "dim": -1}], (9, 20)),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [0, 12345678901234567, -1])
def test_rounding_noise_is_the_references(seed, layout, shape, decay, device):
    def run(function):
        torch.manual_seed(0)
        start = torch.randn(shape).bfloat16().to(device)
        grads = [torch.randn(shape).sign().bfloat16().to(device) for _ in range(3)]
        options = {"momentum": 0.0, "weight_decay": 0.0, "adjust_lr_fn": "none", "decay": decay}
        return function(start, grads, layout=layout, stochastic_rounding=True, seed=seed, **options)

    fused, expected = run(steps), run(reference_steps)
    assert fused[2] == 3 and expected[2] == 0
    for ours, theirs in zip(fused[0], expected[0], strict=True):
        assert torch.equal(ours, theirs)


def test_rounding_noise_tells_parameters_and_steps_apart(device):
    """Position and step of several parameters in one call are those of the reference."""

    def run():
        params = [torch.nn.Parameter(torch.ones(40, 4, device=device).bfloat16()) for _ in range(3)]
        optimizer = erlangen.Equivariant(
            [{"params": params, "rule": "row_norm"}],
            lr=2.0**-8,
            momentum=0.0,
            weight_decay=0.0,
            adjust_lr_fn="none",
            stochastic_rounding=True,
        )
        for i in range(3):
            for p, keeps in zip(params, (-1, 1, -1), strict=True):
                p.grad = None if i == keeps else torch.ones_like(p)
            optimizer.step()
        return [p.detach().cpu() for p in params], [
            float(optimizer.state[p]["step"]) for p in params
        ]

    count = _C.kernel_count()
    fused, fused_steps = run()
    assert _C.kernel_count() == count + 8
    _C.use_kernels(False)
    try:
        expected, expected_steps = run()
    finally:
        _C.use_kernels(True)
    assert fused_steps == expected_steps == [3, 2, 3]
    assert all(torch.equal(a, b) for a, b in zip(fused, expected, strict=True))
    assert not torch.equal(fused[0], fused[2])


@pytest.mark.parametrize("rule", ["row_norm", "column_norm", "spectral"])
def test_steps_are_counted_where_there_is_noise_to_draw(rule, device):
    for dtype in DTYPES:
        param = torch.nn.Parameter(torch.randn(3, 4, device=device).to(dtype))
        group = {"params": [param], "rule": rule}
        optimizer = erlangen.Equivariant([group], stochastic_rounding=True)
        for _ in range(2):
            param.grad = torch.randn_like(param)
            optimizer.step()
        state = optimizer.state[param]
        assert ("step" in state) == (dtype == torch.bfloat16)
        assert dtype != torch.bfloat16 or float(state["step"]) == 2


def test_rows_do_not_see_each_other(device):
    """A row gives the same bits wherever it stands; powers of two and signs change none."""
    start, g = torch.zeros(9, 333, device=device), torch.randn(9, 333, device=device)
    (moved,), _, runs = steps(start, [g])
    assert runs == 1
    order = torch.randperm(9)
    (permuted,), _, _ = steps(start, [g[order.to(device)]])
    assert torch.equal(permuted, moved[order])
    powers = 2.0 ** torch.arange(-40, 50, 10.0, device=device).unsqueeze(1)
    signs = torch.randn(1, 333, device=device).sign()
    (scaled,), _, _ = steps(start, [g * powers * signs])
    assert torch.equal(scaled, moved * signs.cpu())


def test_many_parameters_do_not_see_each_other(device):
    """More than one launch takes, whose rows are at multiples of 16 bytes or not."""
    starts = [torch.randn(1 + i % 7, 64 + i % 3, device=device)[:, :64] for i in range(50)]
    grads = [torch.randn_like(start) for start in starts]
    together = where_step_leaves(starts, grads, rule="row_norm")
    for i in range(50):
        (alone,) = where_step_leaves(starts[i : i + 1], grads[i : i + 1], rule="row_norm")
        assert torch.equal(alone, together[i])
