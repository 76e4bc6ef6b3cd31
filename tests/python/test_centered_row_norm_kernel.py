"""The fused centered row-norm step against the oracles and the reference operations."""

import erlangen
import pytest
import torch
from erlangen import _C
from oracles import DTYPES, Rule, Step
from rule_helpers import check_steps, where_step_leaves

CENTERED = Rule("row_norm", center=True)


def steps(start, grads, **options):
    """Where the steps leave the parameter and the momentum, and how often the kernel ran."""
    param = torch.nn.Parameter(start.clone(memory_format=torch.preserve_format))
    group = {"params": [param], "rule": "row_norm", "center": True, **options}
    optimizer = erlangen.Equivariant([group], lr=0.1)
    count = _C.kernel_count()
    for g in grads:
        param.grad = g
        optimizer.step()
    momentum = optimizer.state[param]["momentum_buffer"]
    return param.detach().cpu(), momentum.cpu(), _C.kernel_count() - count


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    # The last two have rows that on CUDA a block takes, not a warp.
    [(1, 8), (2, 1), (17, 64), (200, 33), (3, 70, 20), (2, 2, 5, 7), (70, 2056), (20, 2051)],
    ids=str,
)
def test_oracle(shape, dtype, device):
    for more in ({}, {"nesterov": True}, {"maximize": True}, {"support": "gradient"}):
        count = _C.kernel_count()
        check_steps(Step(CENTERED, lr=0.1, **more), shape, dtype, device)
        assert _C.kernel_count() == count + 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(dtype, device):
    """Rows apart from each other are the kernel's; columns apart, the reference's: both right."""
    base, stack = torch.empty(24, 30), torch.empty(6, 12, 30)
    for template, fused in [
        (base[::2], True),
        (base[:, 4:20], True),
        (stack[::2, ::3, :17], True),
        (base.T, False),
    ]:
        for which in ("template", "grad_template"):
            count = _C.kernel_count()
            shape = tuple(template.shape)
            check_steps(Step(CENTERED, lr=0.1), shape, dtype, device, **{which: template})
            assert _C.kernel_count() - count == (2 if fused else 0)


@pytest.mark.parametrize("support", ["all", "gradient"])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_low_precision_momentum_is_the_references(dtype, nesterov, support, device):
    """The direction comes from the momentum before it is rounded, in every pass."""
    start = torch.randn(130, 48).to(dtype).to(device)
    grads = [torch.randn(130, 48).to(dtype).to(device) for _ in range(2)]
    grads[1][7] = 0
    options = {"state_dtype": "bfloat16", "nesterov": nesterov, "support": support}
    fused = steps(start, grads, **options)
    _C.use_kernels(False)
    try:
        expected = steps(start, grads, **options)
    finally:
        _C.use_kernels(True)
    assert fused[2] == 2 and expected[2] == 0
    # One more rounding to bfloat16 where the sums differ in their last place, and the rest 1e-5.
    ulp = torch.finfo(dtype).eps
    assert torch.allclose(fused[0].float(), expected[0].float(), rtol=2 * ulp, atol=1e-5)
    assert torch.allclose(fused[1].float(), expected[1].float(), rtol=2.0**-7, atol=1e-30)


def test_rounding_noise_is_keyed_as_in_the_reference(device):
    """Equal rows do not move: what is left is the decay, whose rounding both do alike."""
    start = torch.randn(70, 64).bfloat16().to(device)
    grads = [torch.ones(70, 64).bfloat16().to(device)] * 2
    options = {"stochastic_rounding": True, "seed": 5, "weight_decay": 0.25}
    options["lr"] = 0.5  # a decay of 7/8, exact
    fused = steps(start, grads, **options)
    _C.use_kernels(False)
    try:
        expected = steps(start, grads, **options)
    finally:
        _C.use_kernels(True)
    assert fused[2] == 2 and expected[2] == 0
    assert torch.equal(fused[0], expected[0])
    assert not torch.equal(fused[0], (start.float().cpu() * (7 / 8) ** 2).bfloat16())


def test_matrices_do_not_see_each_other(device):
    """A matrix of a stack gives the same bits as by itself; several parameters at once as well."""
    start, g = torch.randn(3, 70, 40, device=device), torch.randn(3, 70, 40, device=device)
    together, _, runs = steps(start, [g])
    assert runs == 1
    for i in range(3):
        assert torch.equal(steps(start[i], [g[i]])[0], together[i])
    params = [torch.nn.Parameter(start[i].clone()) for i in range(3)]
    for i, p in enumerate(params):
        p.grad = g[i].clone()
    count = _C.kernel_count()
    erlangen.Equivariant([{"params": params, "rule": "row_norm", "center": True}], lr=0.1).step()
    assert _C.kernel_count() == count + 3
    for i, p in enumerate(params):
        assert torch.equal(p.detach().cpu(), together[i])


def test_parameters_of_other_shapes_do_not_matter(device):
    """Matrices and stacks, of other heights, at multiples of 16 bytes or not: as if alone."""
    shapes = [(70, 40), (3, 70, 40), (200, 40), (2, 1, 40), (5, 33)] * 10
    starts = [torch.randn(shape, device=device) for shape in shapes]
    starts[::15] = [torch.randn(70, 43, device=device)[:, :40] for _ in starts[::15]]
    grads = [torch.randn_like(start) for start in starts]
    group = {"rule": "row_norm", "center": True}
    together = where_step_leaves(starts, grads, **group)
    for i in range(len(shapes)):
        (alone,) = where_step_leaves(starts[i : i + 1], grads[i : i + 1], **group)
        assert torch.equal(alone, together[i])


def test_more_matrices_than_a_grid_dimension_holds(device):
    start, g = torch.randn(70000, 3, 8, device=device), torch.randn(70000, 3, 8, device=device)
    together, _, runs = steps(start, [g])
    assert runs == 1
    for part in (slice(3), slice(65534, 65538), slice(-3, None)):
        assert torch.equal(steps(start[part], [g[part]])[0], together[part])
