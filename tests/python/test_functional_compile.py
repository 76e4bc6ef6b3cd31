"""The bare rules as operators: schemas, Meta kernels, torch.compile and torch.export."""

import erlangen.functional as F
import pytest
import torch
from rule_helpers import one_thread  # noqa: F401

NAMES = ["center", "row_norm", "column_norm"]
POLAR = ["spectral", "right_spectral", "left_spectral", "hybrid"]
names = pytest.mark.parametrize("name", NAMES + POLAR)

INPUTS = {
    "tall": lambda: torch.randn(8, 5),
    "wide": lambda: torch.randn(5, 8),
    "square": lambda: torch.randn(6, 6),
    "row": lambda: torch.randn(1, 5),
    "batch": lambda: torch.randn(2, 3, 4, 5),
    "transposed": lambda: torch.randn(5, 8).mT,
    "strided": lambda: torch.randn(2, 6, 4)[:, ::2],
    "channels_last": lambda: torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "bfloat16": lambda: torch.randn(8, 5).bfloat16(),
    "float64": lambda: torch.randn(8, 5).double(),
    "no rows": lambda: torch.randn(0, 5),
    "no matrices": lambda: torch.randn(0, 4, 5),
}
inputs = pytest.mark.parametrize("kind", INPUTS)


@names
@inputs
def test_opcheck(name, kind, device):
    torch.library.opcheck(getattr(torch.ops.erlangen, name).default, (INPUTS[kind]().to(device),))


@names
@inputs
def test_meta_promises_what_the_kernel_returns(name, kind, device):
    x = INPUTS[kind]().to(device)
    meta, real = getattr(F, name)(x.to("meta")), getattr(F, name)(x)
    assert meta.shape == real.shape == x.shape
    assert meta.dtype == real.dtype == x.dtype
    assert meta.stride() == real.stride()


def composed(name):
    options = {"alpha": 0.5, "ns_steps": 3, "ns_coefficients": "you"} if name in POLAR else {}
    return lambda x: getattr(F, name)(x, **options) * 2


@names
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(name, dynamic, device):
    """In one graph, for one shape or several."""
    torch._dynamo.reset()
    function = composed(name)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for shape in [(8, 5), (5, 8)]:
        x = torch.randn(shape, device=device)
        assert torch.equal(compiled(x), function(x))


@names
def test_export(name, device):
    class Model(torch.nn.Module):
        def forward(self, x):
            return composed(name)(x)

    x = torch.randn(8, 5, device=device)
    exported = torch.export.export(Model(), (torch.zeros_like(x),))
    assert torch.equal(exported.module()(x), Model()(x))
    assert f"erlangen.{name}" in str(exported.graph)


@names
def test_leaves_its_input_alone_and_never_returns_it(name, device):
    for x in (torch.randn(6, 4, device=device), torch.zeros(1, 1, device=device)):
        before = x.clone()
        y = getattr(F, name)(x)
        y.add_(1)
        assert torch.equal(x, before)


@names
def test_of_a_parameter(name):
    """Rules are no part of the graph that autograd keeps."""
    x = torch.nn.Parameter(torch.randn(4, 6))
    y = getattr(F, name)(x)
    assert not y.requires_grad
    assert torch.equal(y, getattr(F, name)(x.detach()))


@names
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_refuses_what_it_cannot_take(name, device):
    function = getattr(F, name)
    with pytest.raises(TypeError, match="dtype"):
        function(torch.ones(3, 3, dtype=torch.int64, device=device))
    with pytest.raises(ValueError, match="shape"):
        function(torch.ones(3, device=device))
    with pytest.raises(TypeError, match="x is a list; allowed: a tensor"):
        function([[1.0, 2.0]])


@pytest.mark.parametrize("name", POLAR)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "bad",
    [
        {"ns_method": "magic"},
        {"ns_dtype": "int8"},
        {"ns_coefficients": "x"},
        {"ns_steps": 0},
        {"alpha": float("nan")},
    ],
    ids=str,
)
def test_refuses_options_that_do_not_exist(name, bad, device):
    with pytest.raises(ValueError, match=next(iter(bad))):
        getattr(F, name)(torch.ones(3, 3, device=device), **bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"ns_coefficients": 5},
        {"ns_coefficients": None},
        {"ns_coefficients": [(1, 2, "a")]},
        {"ns_coefficients": (1.0, 2.0)},
        {"ns_coefficients": []},
        {"ns_steps": 1.5},
        {"ns_method": None},
        {"ns_dtype": torch.bfloat16},
    ],
    ids=str,
)
def test_refuses_options_of_another_type(bad):
    (name, value) = next(iter(bad.items()))
    with pytest.raises(TypeError) as error:
        F.spectral(torch.ones(3, 3), **bad)
    assert str(error.value).startswith(f"{name} is {value!r}; allowed: ")


@pytest.mark.parametrize("name", POLAR)
def test_autocast_changes_nothing(name, device):
    """ns_dtype alone says in which type the products are."""
    x = torch.randn(8, 5, device=device)
    plain = getattr(F, name)(x, ns_dtype="float32")
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(getattr(F, name)(x, ns_dtype="float32"), plain)


@pytest.mark.parametrize("ns_method", ["standard", "gram", "exact"])
@pytest.mark.parametrize("name", POLAR)
def test_a_matrix_with_nan_leaves_the_others_alone(name, ns_method, device):
    x = torch.randn(3, 8, 5, device=device)
    clean = getattr(F, name)(x, ns_method=ns_method)
    x[1, 2, 3] = float("nan")
    spoilt = getattr(F, name)(x, ns_method=ns_method)
    assert spoilt[1].isnan().any()
    assert torch.equal(spoilt[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("name", POLAR[:3])
def test_zero_matrices_stay_zero_under_any_alpha(name, device):
    x = torch.zeros(2, 4, 5, device=device)
    x[1] = torch.randn(4, 5)
    y = getattr(F, name)(x, alpha=-0.5)
    assert not y[0].any() and y[1].isfinite().all() and y[1].any()
