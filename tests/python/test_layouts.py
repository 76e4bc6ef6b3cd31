"""Layouts against explicit indices: what a step moves is what the oracle's matrices say."""

import erlangen
import pytest
import torch
from oracles import Rule, Step, logical_matrices
from rule_helpers import check_steps, one_thread  # noqa: F401

ADJUST = ["match_rms_adamw", "original", "spectral_unclamped", "unit_rms_norm", "none"]
T = {"transpose": True}
FLATTEN = {"flatten": True}
KERNELS = {"flatten": "kernels"}  # of four and five dimensions alone


def heads(n, dim=-2):
    return {"heads": n, "dim": dim}


def sections(*sizes, dim=-2):
    return {"sections": list(sizes), "dim": dim}


def pairs(order, dim=-2):
    return {"pairs": order, "dim": dim}


LAYOUTS = [
    (None, (6, 4)),
    (None, (2, 3, 6, 4)),
    ([T], (6, 4)),
    ([T], (3, 6, 4)),
    ([T, T], (6, 4)),
    ([KERNELS], (6, 4)),
    ([KERNELS], (3, 6, 4)),
    ([KERNELS], (6, 2, 3, 2)),
    ([KERNELS], (4, 2, 2, 1, 3)),
    ([KERNELS], (2, 1, 2, 1, 3, 2)),
    ([KERNELS, T], (6, 2, 3, 2)),
    ([heads(3)], (6, 4)),
    ([heads(2, -1)], (6, 4)),
    ([heads(3), heads(2, -1)], (6, 4)),
    ([heads(1)], (6, 4)),
    ([heads(6)], (6, 4)),
    ([T, heads(2)], (6, 4)),
    ([heads(2), T], (6, 4)),
    ([sections(2, 4)], (6, 5)),
    ([sections(3, 1, 2)], (6, 5)),
    ([sections(1, 4, dim=-1)], (6, 5)),
    ([sections(4, 2, 2)], (2, 8, 5)),
    ([sections(4, 2, 2), heads(2)], (8, 5)),
    ([sections(2, 4), sections(1, 4, dim=-1)], (6, 5)),
    ([heads(2), sections(1, 3)], (8, 5)),
    ([sections(4, 4), T], (8, 5)),
    ([pairs("concatenated")], (8, 3)),
    ([pairs("interleaved")], (8, 3)),
    ([pairs("concatenated", -1)], (3, 8)),
    ([pairs("interleaved", -1)], (3, 8)),
    ([pairs("concatenated")], (2, 8, 3)),
    ([T, pairs("interleaved")], (2, 3, 8)),  # gpt-oss: [E, d, 2r] as [E, r, 2d]
    ([T, pairs("concatenated")], (2, 3, 8)),
    ([pairs("concatenated"), T], (8, 3)),
    ([pairs("interleaved"), T], (8, 3)),
    ([pairs("concatenated"), heads(2, -1)], (8, 4)),  # the gates and the ups
    ([pairs("concatenated"), heads(4, -1)], (8, 4)),
    ([pairs("interleaved"), heads(2, -1)], (8, 4)),
    ([pairs("interleaved"), heads(4, -1)], (8, 4)),
    ([pairs("interleaved"), heads(2)], (8, 4)),
    ([heads(2), pairs("interleaved")], (8, 4)),
    ([heads(2), pairs("concatenated")], (8, 4)),
    ([pairs("concatenated"), sections(4, 4, dim=-1)], (8, 4)),
    ([FLATTEN], (4, 3, 2, 2)),
    ([FLATTEN], (4, 6)),
    ([FLATTEN, T], (4, 3, 2)),
    ([FLATTEN, heads(2)], (4, 3, 2, 2)),
    ([FLATTEN, sections(4, 8, dim=-1)], (4, 3, 2, 2)),
    ([heads(6), sections(1)], (6, 4)),  # nothing is left to cut
    ([FLATTEN, sections(1, dim=-1)], (6, 1, 1)),
]
layouts = pytest.mark.parametrize("layout, shape", LAYOUTS, ids=lambda value: str(value))


def test_the_indices_themselves():
    """The oracle's own indices, by hand."""

    def of(layout, shape):
        return [m.tolist() for m in logical_matrices(layout, shape)]

    assert of([T], (2, 3)) == [[[0, 3], [1, 4], [2, 5]]]
    assert of([heads(2)], (4, 1)) == [[[0], [1]], [[2], [3]]]
    assert of([sections(1, 2, dim=-1)], (1, 3)) == [[[0]], [[1, 2]]]
    assert of([pairs("concatenated")], (4, 2)) == [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    assert of([pairs("interleaved")], (4, 2)) == [[[0, 1, 2, 3], [4, 5, 6, 7]]]
    assert of([pairs("interleaved", -1)], (2, 4)) == [[[0, 4, 1, 5], [2, 6, 3, 7]]]
    assert of([FLATTEN], (2, 2, 2)) == [[[0, 1, 2, 3], [4, 5, 6, 7]]]
    gpt_oss = logical_matrices([T, pairs("interleaved")], (5, 3, 8))
    assert len(gpt_oss) == 5 and gpt_oss[0].shape == (4, 6)


@layouts
def test_row_norm(layout, shape, device):
    rule = Rule("row_norm", adjust_lr_fn="match_rms_adamw")
    check_steps(Step(rule, lr=0.1, layout=layout), shape, torch.float32, device)


@layouts
def test_column_norm(layout, shape, device):
    rule = Rule("column_norm", adjust_lr_fn="unit_rms_norm")
    check_steps(Step(rule, lr=0.1, layout=layout), shape, torch.float64, device)


@layouts
@pytest.mark.parametrize("order", ["momentum_first", "polar_first"])
def test_spectral_with_alpha_and_scale_of_each_matrix(layout, shape, order, device):
    rule = Rule("spectral", alpha=1.0, adjust_lr_fn="original", steps=None)
    step = Step(rule, lr=0.1, layout=layout, momentum_order=order)
    check_steps(step, shape, torch.float64, device)


@pytest.mark.parametrize("rule", ["row_norm", "spectral", "column_norm"])
@pytest.mark.parametrize("layout", [None, [FLATTEN]], ids=str)
def test_channels_last(layout, rule, device):
    shape = (4, 3, 2, 5)
    template = torch.empty(shape).contiguous(memory_format=torch.channels_last)
    step = Step(Rule(rule), lr=0.1, layout=layout)
    for more in ({"template": template}, {"grad_template": template}):
        check_steps(step, shape, torch.float32, device, **more)
    check_steps(step, shape, torch.float32, device, template=template, grad_template=template)


@pytest.mark.parametrize("layout, shape", [x for x in LAYOUTS if len(x[1]) == 2], ids=str)
def test_strided_parameters(layout, shape, device):
    step = Step(Rule("row_norm"), lr=0.1, layout=layout)
    wide = torch.empty(2 * shape[0], 3 * shape[1])
    for template in (torch.empty(shape[::-1]).T, wide[::2, ::3], wide[: shape[0], : shape[1]]):
        check_steps(step, shape, torch.float32, device, template=template)
        check_steps(step, shape, torch.float32, device, grad_template=template)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("rule", ["row_norm", "left_spectral"])
def test_centering_after_the_layout(rule, centered, device):
    for layout, shape in [([T], (6, 4)), ([FLATTEN], (4, 3, 2)), ([T], (3, 6, 4))]:
        step = Step(Rule(rule, center=centered), lr=0.1, layout=layout)
        check_steps(step, shape, torch.float64, device)


@pytest.mark.parametrize("adjust", ADJUST)
@pytest.mark.parametrize("layout", [None, [heads(2)], [T], [sections(2, 4)]], ids=str)
def test_nothing_couples_two_matrices(layout, adjust, device):
    """One expert's gradient a thousand times as large: the others move as before, to the bit."""
    g = torch.randn(3, 6, 4, device=device)
    moved = []
    for factor in (1.0, 1000.0):
        p = torch.nn.Parameter(torch.zeros(3, 6, 4, device=device))
        group = {"params": [p], "rule": "spectral", "alpha": 1.0, "layout": layout}
        optimizer = erlangen.Equivariant([group], lr=0.1, adjust_lr_fn=adjust)
        p.grad = torch.cat([g[:1] * factor, g[1:]])
        optimizer.step()
        moved.append(p.detach())
    assert torch.equal(moved[0][1:], moved[1][1:])
    assert not torch.equal(moved[0][0], moved[1][0])


def test_equal_logical_shapes_from_other_layouts_share_no_result(device):
    """Parameters of one bucket, each with its own layout, give the bits that they give alone."""
    shapes = [((9, 7), None), ((7, 9), [T]), ((18, 7), [heads(2)]), ((2, 9, 7), None)]
    grads = [torch.randn(shape, device=device) for shape, _ in shapes]

    def run(chosen):
        params = [torch.nn.Parameter(torch.ones(shapes[i][0], device=device)) for i in chosen]
        optimizer = erlangen.Equivariant(
            [
                {"params": [p], "rule": "spectral", "layout": shapes[i][1]}
                for i, p in zip(chosen, params, strict=True)
            ],
            lr=0.1,
        )
        for i, p in zip(chosen, params, strict=True):
            p.grad = grads[i].clone()
        optimizer.step()
        return [p.detach() for p in params]

    together = run(range(4))
    for i, result in enumerate(together):
        assert torch.equal(result, run([i])[0])
