"""The fused column-norm step: units that lie across memory rows, against the oracles and against
the reference operations, which support by gradient reaches where every row has a gradient."""

import erlangen
import pytest
import torch
from bounds import roundoff
from erlangen import _C
from oracles import DTYPES, Rule, Step
from rule_helpers import check_steps, compute_dtype, like, storage_error

TRANSPOSE = {"transpose": True}
INTERLEAVED = [TRANSPOSE, {"pairs": "interleaved", "dim": -2}]
CONCATENATED = [TRANSPOSE, {"pairs": "concatenated", "dim": -2}]

# rule, layout, shape
CASES = [
    ("column_norm", None, (1, 8)),
    ("column_norm", None, (5, 3)),
    ("column_norm", None, (3, 70, 33)),
    ("column_norm", None, (1030, 6)),
    ("column_norm", None, (4200, 12)),  # more chunks of rows than are asked for at once on CUDA
    ("column_norm", None, (70, 600)),  # and more than one tile of columns
    ("column_norm", [{"heads": 4, "dim": -2}], (12, 5)),
    ("column_norm", [{"heads": 4, "dim": -1}], (5, 12)),
    ("column_norm", [{"sections": [3, 7], "dim": -2}], (10, 6)),
    ("column_norm", [{"flatten": True}], (6, 3, 2, 2)),
    ("row_norm", [TRANSPOSE], (17, 64)),
    ("row_norm", [TRANSPOSE], (2, 3, 17, 20)),
    ("row_norm", [TRANSPOSE, {"heads": 4, "dim": -2}], (7, 12)),
    ("row_norm", [TRANSPOSE, {"sections": [3, 9], "dim": -2}], (7, 12)),
    ("row_norm", INTERLEAVED, (17, 64)),
    ("row_norm", INTERLEAVED, (4, 9, 10)),
    ("row_norm", INTERLEAVED, (1, 8)),
    ("row_norm", INTERLEAVED, (9, 2)),
    ("row_norm", CONCATENATED, (17, 64)),
    ("row_norm", CONCATENATED, (4, 9, 10)),
    ("row_norm", CONCATENATED, (9, 2)),
    ("row_norm", [TRANSPOSE, {"heads": 2, "dim": -2}, CONCATENATED[1]], (5, 24)),
    ("row_norm", [TRANSPOSE, {"heads": 2, "dim": -2}, INTERLEAVED[1]], (5, 24)),
]


def steps(start, grads, rule, layout, **options):
    """Where the steps leave the parameter and the momentum, and how often the kernel ran."""
    param = torch.nn.Parameter(start.clone(memory_format=torch.preserve_format))
    group = {"params": [param], "rule": rule, "layout": layout, **options}
    optimizer = erlangen.Equivariant([group], lr=0.1)
    count = _C.kernel_count()
    for g in grads:
        param.grad = g
        optimizer.step()
    momentum = optimizer.state[param]["momentum_buffer"]
    return param.detach().cpu(), momentum.cpu(), _C.kernel_count() - count


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule, layout, shape", CASES, ids=str)
def test_oracle(rule, layout, shape, dtype, device):
    count = _C.kernel_count()
    for more in ({}, {"nesterov": True}, {"maximize": True}):
        check_steps(Step(Rule(rule), lr=0.1, layout=layout, **more), shape, dtype, device)
    assert _C.kernel_count() - count == 6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule, layout, shape", CASES, ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"nesterov": True}, {"decay": "cautious"}, {"state_dtype": "bfloat16", "nesterov": True}],
    ids=str,
)
def test_kernel_and_reference(options, rule, layout, shape, dtype, device):
    if dtype == torch.float64 and "state_dtype" in options:
        return  # the kernel leaves this pair to the reference
    start = torch.randn(shape).to(dtype).to(device)
    g = torch.randn(shape).to(dtype).to(device)
    fused, m, runs = steps(start, [g], rule, layout, **options)
    expected, m_expected, none = steps(start, [g], rule, layout, support="gradient", **options)
    assert runs == 1 and none == 0
    u = roundoff(compute_dtype(dtype))
    value = expected.double()
    update = 0.1 * 0.2 * start.numel() ** 0.5  # a unit's is this for its own number of elements
    # Sum of n squares, root, division, product, difference; then one rounding to storage each.
    bound = (8 + start.numel() ** 0.5) * u * (update + float(value.norm()))
    assert float((fused.double() - value).norm()) <= bound + 2 * storage_error(dtype, value)
    stored = storage_error(m.dtype, m_expected.double())
    assert float((m.double() - m_expected.double()).norm()) <= 2 * stored


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_sizes(size, dtype, device):
    size = {1e-30: 1e-3, 1e30: 1e3}.get(size, 1.0) if dtype == torch.float16 else size
    grads = [torch.randn(40, 6, dtype=torch.float64) * size for _ in range(2)]
    count = _C.kernel_count()
    step = Step(Rule("row_norm"), lr=0.1, layout=INTERLEAVED)
    check_steps(step, (40, 6), dtype, device, grads=grads)
    assert _C.kernel_count() == count + 2


def test_zero_units_stay(device):
    start, g = torch.randn(20, 8, device=device), torch.randn(20, 8, device=device)
    g[:, 2:4] = 0
    after, _, runs = steps(start, [g], "row_norm", INTERLEAVED, weight_decay=0.0)
    assert runs == 1
    assert torch.equal(after[:, 2:4], start[:, 2:4].cpu())
    assert (after != start.cpu())[:, [0, 1, 4, 5, 6, 7]].all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(dtype, device):
    """Rows apart from each other are the kernel's; columns apart, the reference's: both right."""
    base = torch.empty(12, 30)
    for template, fused in [(base[::2], True), (base[:, 4:20], True), (base[:, ::2], False)]:
        count = _C.kernel_count()
        step = Step(Rule("column_norm"), lr=0.1)
        check_steps(step, tuple(template.shape), dtype, device, template=template)
        check_steps(step, tuple(template.shape), dtype, device, grad_template=template)
        assert _C.kernel_count() - count == (4 if fused else 0)


@pytest.mark.parametrize("layout", [INTERLEAVED, CONCATENATED], ids=str)
def test_writes_nothing_beside_its_columns(layout, device):
    storage = torch.full((12, 30), 7.0, device=device)
    param = torch.nn.Parameter(storage[1:11:2, 3:21])
    optimizer = erlangen.RowNorm([{"params": [param], "layout": layout}], lr=0.1)
    param.grad = like(torch.ones(5, 18, device=device), param)
    count = _C.kernel_count()
    optimizer.step()
    assert _C.kernel_count() == count + 1
    untouched = torch.ones(12, 30, dtype=torch.bool)
    untouched[1:11:2, 3:21] = False
    assert (storage.cpu()[untouched] == 7).all()
    assert (storage.cpu()[~untouched] != 7).all()


@pytest.mark.parametrize(
    "more",
    [
        {"support": "gradient"},
        {"momentum_order": "polar_first"},
        {"rule": "row_norm", "center": True, "layout": [TRANSPOSE]},
    ],
    ids=str,
)
def test_refused(more, device):
    """What the kernel cannot do goes another way (tests of the options say it is right)."""
    start, g = torch.randn(6, 8, device=device), torch.randn(6, 8, device=device)
    assert steps(start, [g], **{"rule": "column_norm", "layout": None, **more})[2] == 0


def test_units_do_not_see_each_other(device):
    """A unit gives the same bits wherever it stands; powers of two and signs change none."""
    start, g = torch.zeros(333, 12, device=device), torch.randn(333, 12, device=device)
    moved, _, runs = steps(start, [g], "column_norm", None)
    assert runs == 1
    order = torch.randperm(12)
    permuted, _, _ = steps(start, [g[:, order.to(device)]], "column_norm", None)
    assert torch.equal(permuted, moved[:, order])
    powers = 2.0 ** torch.arange(-60, 60, 10.0, device=device)
    signs = torch.randn(333, 1, device=device).sign()
    scaled, _, _ = steps(start, [g * powers * signs], "column_norm", None)
    assert torch.equal(scaled, moved * signs.cpu())


def test_many_parameters_are_one_bucket_or_several(device):
    """Stacks and matrices together, with options of their own, as if each were alone."""
    shapes = [(9, 10)] * 3 + [(4, 9, 10)] * 2
    starts = [torch.randn(s, device=device) for s in shapes]
    grads = [torch.randn(s, device=device) for s in shapes]
    params = [torch.nn.Parameter(s.clone()) for s in starts]
    rule = {"rule": "row_norm", "layout": INTERLEAVED}
    groups = [
        {"params": params[:2], **rule},
        {"params": params[2:], **rule, "momentum": 0.5, "weight_decay": 0.3},
    ]
    optimizer = erlangen.Equivariant(groups, lr=0.1)
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    count = _C.kernel_count()
    optimizer.step()
    assert _C.kernel_count() == count + 5
    for i, (p, start, g) in enumerate(zip(params, starts, grads, strict=True)):
        more = {} if i < 2 else {"momentum": 0.5, "weight_decay": 0.3}
        alone, _, _ = steps(start, [g], "row_norm", INTERLEAVED, **more)
        assert torch.equal(p.detach().cpu(), alone)


def test_more_matrices_than_a_grid_dimension_holds(device):
    start, g = torch.randn(70000, 3, 8, device=device), torch.randn(70000, 3, 8, device=device)
    together, _, runs = steps(start, [g], "column_norm", None)
    assert runs == 1
    for part in (slice(3), slice(65534, 65538), slice(-3, None)):
        assert torch.equal(steps(start[part], [g[part]], "column_norm", None)[0], together[part])
