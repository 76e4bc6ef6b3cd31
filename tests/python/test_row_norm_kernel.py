"""The fused row-norm step against the reference operations, which cautious decay without any decay
reaches: the same formula, for the kernel refuses it."""

import erlangen
import pytest
import torch
from bounds import roundoff
from erlangen import _C
from oracles import DTYPES, Rule, Step
from rule_helpers import check_steps, compute_dtype, like, storage_error

SHAPES = [(1, 1), (1, 7), (7, 1), (3, 5), (17, 64), (5, 100), (3, 4, 33), (2, 4097)]


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
    return steps(*args, **options, decay="cautious", weight_decay=0.0)


@pytest.mark.parametrize(
    "dtype, state_dtype",  # float64 with bfloat16 the kernel leaves to the reference
    [(dtype, "auto") for dtype in DTYPES]
    + [(dtype, "bfloat16") for dtype in DTYPES if dtype != torch.float64],
    ids=str,
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"nesterov": True}, {"maximize": True}, {"support": "gradient"}], ids=str
)
def test_kernel_and_reference(options, shape, dtype, state_dtype, device):
    start = torch.randn(shape).to(dtype).to(device)
    g = torch.randn(shape).to(dtype).to(device)
    g[..., 0, :] = 0
    fused, m, runs = steps(start, [g], state_dtype, weight_decay=0.0, **options)
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


@pytest.mark.parametrize(
    "more",
    [
        {"center": True},
        {"decay": "cautious"},
        {"momentum_order": "polar_first"},
    ],
    ids=str,
)
def test_refused(more, device):
    """What the kernel cannot do goes another way (tests of the options say it is right)."""
    start = torch.randn(6, 8, device=device)
    assert steps(start, [torch.randn(6, 8, device=device)], **more)[2] == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(513, 257), (64, 5000), (100000, 3)], ids=str)
def test_one_and_two_threads_agree_to_the_bit(shape, dtype, device):
    start = torch.randn(shape).to(dtype).to(device)
    grads = [torch.randn(shape).to(dtype).to(device) for _ in range(2)]
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            results.append(steps(start, grads))
    finally:
        torch.set_num_threads(threads)
    assert results[0][2] == results[1][2] == 2
    assert torch.equal(results[0][0][-1], results[1][0][-1])
    assert torch.equal(results[0][1], results[1][1])


def test_rows_do_not_see_each_other(device):
    """A row gives the same bits wherever it stands; powers of two and signs change none."""
    start, g = torch.zeros(9, 333, device=device), torch.randn(9, 333, device=device)
    (moved,), _, _ = steps(start, [g])
    order = torch.randperm(9)
    (permuted,), _, _ = steps(start, [g[order.to(device)]])
    assert torch.equal(permuted, moved[order])
    powers = 2.0 ** torch.arange(-40, 50, 10.0, device=device).unsqueeze(1)
    signs = torch.randn(1, 333, device=device).sign()
    (scaled,), _, _ = steps(start, [g * powers * signs])
    assert torch.equal(scaled, moved * signs.cpu())
