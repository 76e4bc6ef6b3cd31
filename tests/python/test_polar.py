"""The polar iteration: its polynomials and their bands, its forms, its bits."""

import erlangen.functional as F
import pytest
import torch
from bounds import (
    MARGIN,
    NS_DTYPES,
    full_precision,
    is_gram,
    polar_errors,
    polar_spread,
    takes_columns,
    tolerance,
)
from erlangen import _C
from erlangen._build import INFO
from oracles import (
    POLAR_RULES,
    SETS,
    Rule,
    apply,
    composed,
    polar,
    steps_of,
    with_singular_values,
)
from rule_helpers import assert_near, one_thread  # noqa: F401

SHAPES = [(8, 8), (8, 24), (20, 6)]
METHODS = ["standard", "gram"]
RULES = ["spectral", "right_spectral", "left_spectral"]
FUNCTIONS = {name: getattr(F, name) for name in POLAR_RULES}

# What a set makes of σ in [lo, 1]: (set, lo, least, greatest, last digit).
BANDS = [
    ("jordan", 1e-2, 0.68, 1.13, 0.005),
    ("you", 1e-2, 0.978, 1.032, 0.0005),
    ("you", 1e-3, 0.475, 1.145, 0.0005),
    ("polar_express", 1e-2, 0.85, 1.12, 0.005),
    ("polar_express", 1e-3, 0.73, 1.12, 0.005),
    # In exact arithmetic it ends at most 0.00054 above one.
    ("deepseek_v4", 1e-2, 1.0, 1.0, 0.001),
    ("deepseek_v4", 1e-3, 1.0, 1.0, 0.001),
    ("cubic", 1e-2, 1.0, 1.0, 0.0005),
    ("cubic", 1e-3, 0.4165, 1.0, 0.0005),
]


def spread(x, rule, ns_dtype, method):
    dtype = x.dtype if ns_dtype == "auto" else NS_DTYPES[ns_dtype]  # of float64 matrices
    return polar_spread(x, rule, dtype, method == "gram")


@pytest.mark.parametrize("name, lo, least, greatest, digit", BANDS)
def test_documented_bands(name, lo, least, greatest, digit):
    gains = composed(torch.logspace(0, torch.tensor(lo).log10().item(), 50001), steps_of(name))
    assert float(gains.min()) == pytest.approx(least, abs=digit)
    assert float(gains.max()) == pytest.approx(greatest, abs=digit)


def gains(x, sigma, ns_dtype, method, name, ns_steps=None):
    """What becomes of each σ of one matrix, and how far rounding may carry each of them."""
    u, found, vh = torch.linalg.svd(x.cpu(), full_matrices=False)
    count = len(sigma)
    torch.testing.assert_close(found[:count], sigma.sort(descending=True).values)
    options = {"ns_coefficients": name, "ns_method": method, "ns_dtype": ns_dtype}
    y = F.spectral(x, ns_steps=ns_steps, **options)
    rule = Rule("spectral", steps=steps_of(name, ns_steps))
    errors = polar_errors(x.cpu(), rule, NS_DTYPES[ns_dtype], method == "gram", samples=12)
    rooms = MARGIN * (u.T @ errors @ vh.T).diagonal(dim1=-2, dim2=-1).abs().amax(0)
    return (u.T @ y.cpu().double() @ vh.T).diagonal()[:count], rooms[:count]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name, lo, least, greatest, digit", BANDS)
def test_singular_values_end_in_the_band(name, lo, least, greatest, digit, method, device):
    """Down to σ = lo of the unit norm, where most bands have their edge, and densely above."""
    low = torch.logspace(torch.tensor(lo).log10().item(), -0.16, 40, dtype=torch.float64)
    for small in (low[:20:2], *low.unsqueeze(1)):  # many in one matrix, and each with one other
        sigma = torch.cat([small, (1 - small.square().sum()).sqrt().unsqueeze(0)])
        x = with_singular_values(sigma, 12, 30)
        found, room = gains(x.to(device), sigma, "float32", method, name)
        assert (found >= least - digit - room).all() and (found <= greatest + digit + room).all()


# Where a set ends at 1 after so many steps, from σ = 1.
@pytest.mark.parametrize("ns_steps", [5, 9])
@pytest.mark.parametrize("ns_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["jordan", "you", "polar_express", "cubic"])
def test_rank_one_does_not_leave_the_polynomials(name, method, ns_dtype, ns_steps, device):
    """Its σ is 1, or what low precision rounds up from it: the reason for the safety of 1.05."""
    one = torch.ones(1, dtype=torch.float64)
    expected = float(composed(one, steps_of(name, ns_steps)))
    for shape in [(1, 7), (6, 10), (10, 6), (9, 9), (24, 40)]:
        x = torch.outer(torch.randn(shape[0]), torch.randn(shape[1])).double()
        found, room = gains((x / x.norm()).to(device), one, ns_dtype, method, name, ns_steps)
        assert abs(float(found) - expected) <= float(room)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ns_dtype", ["auto", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", SETS)
def test_polynomial(name, ns_dtype, method, shape, device):
    """U·p(σ/‖X‖_F)·Vᵀ up to the rounding of the products."""
    half = ns_dtype in ("bfloat16", "float16")
    sigma = torch.linspace(0.4, 1, min(shape)) if half else torch.logspace(-2, 0, min(shape))
    dtype = torch.float64 if ns_dtype == "auto" else torch.float32
    x = with_singular_values(sigma, *shape, dtype)
    y = F.spectral(x.to(device), ns_coefficients=name, ns_method=method, ns_dtype=ns_dtype)
    rule = Rule("spectral", steps=steps_of(name))
    assert_near(y, polar(x, rule.steps), spread(x, rule, ns_dtype, method))


# Batches of matrices, and whether CUDA takes them through all steps in one launch.
BATCHES = [
    ((5, 64, 1024), True),
    ((3, 128, 1024), True),
    ((2, 100, 333), True),
    ((3, 128, 128), True),
    ((2, 250, 60), True),
    ((2, 129, 300), False),
    ((2, 200, 160), False),
    ((2, 264, 300), False),  # from 256 on Hopper has a kernel of its own
    ((2, 264, 520), False),  # and in the Gram form two operands that are not the same
]


@pytest.mark.parametrize("shape, in_one_launch", BATCHES, ids=str)
@pytest.mark.parametrize("ns_dtype", ["bfloat16", "float16"])
def test_polynomial_of_batches(ns_dtype, shape, in_one_launch, device):
    sigma = torch.logspace(-1, 0, min(shape[1:]))
    x = torch.stack(
        [with_singular_values(sigma, *shape[1:], torch.float32) for _ in range(shape[0])]
    )
    count = _C.polar_kernel_count()
    y = F.spectral(x.to(device), ns_dtype=ns_dtype).cpu()
    expected = in_one_launch and device.type == "cuda" and bool(INFO["cuda"])
    assert _C.polar_kernel_count() - count == expected
    rule = Rule("spectral", steps=steps_of())
    for one, found in zip(x, y, strict=True):
        room = tolerance(rule, one, compute=torch.float32, ns_dtype=ns_dtype)
        assert_near(found, polar(one, rule.steps), room)


@pytest.mark.parametrize("ns_steps", [1, 3, 7, 9])
@pytest.mark.parametrize("name", ["jordan", "you", "polar_express", "cubic"])
def test_more_steps_repeat_the_last_and_fewer_take_the_first(name, ns_steps, device):
    x = with_singular_values(torch.linspace(0.2, 1, 6), 6, 9)
    y = F.spectral(x.to(device), ns_coefficients=name, ns_steps=ns_steps)
    rule = Rule("spectral", steps=steps_of(name, ns_steps))
    assert len(rule.steps) == ns_steps
    assert_near(y, polar(x, rule.steps), spread(x, rule, "auto", "standard"))


@pytest.mark.parametrize(
    "coefficients, count", [((1.5, -0.5, 0.0), 5), ([(2.0, -1.5, 0.5), (1.5, -0.5, 0.0)], 2)]
)
def test_triples(coefficients, count, device):
    x = with_singular_values(torch.linspace(0.2, 1, 6), 6, 9)
    steps = steps_of(coefficients)
    assert len(steps) == count
    y = F.spectral(x.to(device), ns_coefficients=coefficients)
    rule = Rule("spectral", steps=steps)
    assert_near(y, polar(x, steps), spread(x, rule, "auto", "standard"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shape", [*SHAPES, (3, 5, 9)], ids=str)
@pytest.mark.parametrize("rule", POLAR_RULES)
def test_methods_agree(rule, shape, name, dtype, device):
    """standard and gram are the same polynomial, exact is its limit, auto one of the two."""
    sigma = torch.logspace(-2, 0, min(shape[-2:]))
    count = torch.Size(shape[:-2]).numel()
    x = torch.stack([with_singular_values(sigma, *shape[-2:], dtype) for _ in range(count)])
    x = x.reshape(shape)
    options = {"ns_coefficients": name, "ns_dtype": full_precision(dtype)}
    results = {
        m: FUNCTIONS[rule](x.to(device), ns_method=m, **options).cpu()
        for m in (*METHODS, "exact", "auto")
    }
    gram = is_gram(rule, "auto", *shape[-2:], dtype)
    assert torch.equal(results["auto"], results["gram" if gram else "standard"])
    for method, y in results.items():
        oracle = Rule(rule, steps=None if method == "exact" else steps_of(name))
        matrices = zip(x.reshape(-1, *shape[-2:]), y.reshape(-1, *shape[-2:]), strict=True)
        for one, found in matrices:
            bound = tolerance(oracle, one, compute=dtype, ns_method=method)
            assert_near(found, apply(oracle, one.double()), bound, method)


def test_products_by_default(device):
    """By what the device multiplies fastest; on a CPU in float32 through Gram matrices, which AMX's
    bfloat16 overtakes."""
    capabilities = torch.cpu.get_capabilities()
    tiles = capabilities.get("amx_bf16") and torch.cpu._init_amx()
    fast = capabilities.get("avx512_bf16") or tiles
    for shape in [(8, 16), (8, 24)]:
        x = torch.randn(shape, device=device)
        for rule, function in FUNCTIONS.items():
            through_gram = rule.endswith("_spectral") or (shape == (8, 24) and not tiles)
            chosen = "float16" if device.type == "cuda" else "float32"
            if device.type == "cpu" and fast and not through_gram:
                chosen = "bfloat16"
            others = {d: function(x, ns_dtype=d) for d in ("float32", "bfloat16", "float16")}
            same = [d for d, y in others.items() if torch.equal(y, function(x))]
            assert same == [chosen], (rule, shape)
            if device.type == "cpu":  # who chooses the form chooses the type, whatever the shape
                for method, dtype in {"standard": "bfloat16", "gram": "float32"}.items():
                    one = function(x, ns_method=method)
                    other = function(x, ns_method=method, ns_dtype=dtype if fast else "float32")
                    assert torch.equal(one, other), (rule, shape, method)
    if device.type == "cpu":
        with torch.backends.mkldnn.flags(enabled=False):  # whose are the fast products
            x = torch.randn(8, 8)
            assert torch.equal(F.spectral(x), F.spectral(x, ns_dtype="float32"))


# The largest σ in the band of each set.
GREATEST = {"jordan": 1.21, "you": 1.15, "polar_express": 1.12, "deepseek_v4": 1.0, "cubic": 1.0}

# Of 32: those on which the Gram form's rounding shows.
SPECTRA = {
    "decades": torch.logspace(-3, 0, 32),
    "one large": torch.tensor([1.0] + [1e-3] * 31),
    "two": torch.tensor([0.8, 0.6] + [1e-3] * 30),
    "half": torch.tensor([1.0] * 16 + [1e-3] * 16),
}


def of_spectrum(name, shape, aligned):
    """Singular vectors along the axes, where each entry of the root counts alone, or anywhere."""
    if not aligned:
        return with_singular_values(SPECTRA[name], *shape, torch.float32)
    x = torch.zeros(shape)
    x.diagonal().copy_(SPECTRA[name])
    return x


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("rule", RULES)
def test_root_in_float32(rule, name, spectrum, aligned, device):
    """Where k×k matrices are in float32 though products with X are in float16."""
    x = of_spectrum(spectrum, (1536, 32) if rule == "right_spectral" else (32, 1536), aligned)
    y = FUNCTIONS[rule](x.to(device), ns_coefficients=name, ns_dtype="float16", ns_method="gram")
    options = Rule(rule, steps=steps_of(name))
    assert_near(y, polar(x, options.steps), spread(x, options, "float16", "gram"))
    # 5 % for the rounding of half precision.
    assert float(torch.linalg.matrix_norm(y.cpu(), 2)) < 1.05 * GREATEST[name]


@pytest.fixture
def matmul_precision():
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("rule", RULES)
def test_float32_products_that_round_more(
    rule, name, spectrum, precision, device, matmul_precision
):
    """The Gram form begins anew more often, whether the device makes use of what it may or not."""
    for aligned in (False, True):
        x = of_spectrum(spectrum, (1536, 32) if rule == "right_spectral" else (32, 1536), aligned)
        results = []
        for each in ("highest", precision):
            matmul_precision(each)
            results.append(
                FUNCTIONS[rule](x.to(device), ns_coefficients=name, ns_dtype="float32").cpu()
            )
        assert aligned or not torch.equal(*results)
        # 5 % for the rounding of half precision.
        assert float(torch.linalg.matrix_norm(results[1], 2)) < 1.05 * GREATEST[name]


@pytest.mark.parametrize("method", [*METHODS, "auto"])
@pytest.mark.parametrize("ns_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("rows, cols", [(1, 3), (2, 3), (4, 12), (5, 9), (8, 24), (16, 64)])
def test_nothing_blows_up_in_half_precision(rows, cols, ns_dtype, method, device):
    """Whatever the spectrum: one large σ beside small ones, many decades, or nearly equal ones."""
    count = 6000 // rows
    sigma = 10 ** (-4 * torch.rand(count, rows))
    sigma[: count // 3, 0] = 1
    sigma[count // 3 : count // 2] = 10 ** -torch.rand(count // 2 - count // 3, rows)
    sigma[-count // 6 :, 2:] *= 1e-4
    left, right = (torch.linalg.qr(torch.randn(count, n, rows)).Q for n in (rows, cols))
    x = ((left * sigma.unsqueeze(1)) @ right.mT).to(device)
    for name, greatest in GREATEST.items():
        y = F.spectral(x, ns_coefficients=name, ns_method=method, ns_dtype=ns_dtype)
        # 5 % for the rounding of half precision.
        assert float(torch.linalg.matrix_norm(y.cpu(), 2).max()) < 1.05 * greatest, name


@pytest.mark.parametrize("ratio", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("shape", [(8, 8), (30, 8), (8, 30)])
@pytest.mark.parametrize("rule", ["right_spectral", "left_spectral"])
def test_one_sided_down_to_small_singular_values(rule, shape, ratio, device):
    """Float32 products, the Gram matrix of either side; its float64 oracle and its band."""
    sigma = torch.logspace(torch.tensor(ratio).log10().item(), 0, 8)
    x = with_singular_values(sigma, *shape, torch.float32)
    y = FUNCTIONS[rule](x.to(device), ns_dtype="float32")
    room = spread(x, Rule(rule), "float32", "gram")
    assert_near(y, polar(x, steps_of()), room)
    assert room < 0.05  # the band of the float32 iteration is the polynomial's, within 5 %
    exact = FUNCTIONS[rule](x.to(device), ns_method="exact")
    assert_near(exact, polar(x, None), tolerance(Rule(rule, steps=None), x, compute=x.dtype))


@pytest.mark.parametrize("method", METHODS + ["exact"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", RULES)
def test_rank_deficient(rule, shape, method, device):
    """Zero singular values stay zero: a partial isometry."""
    x = with_singular_values([1.0, 0.8, 0.5], *shape)
    y = FUNCTIONS[rule](x.to(device), ns_method=method)
    steps = None if method == "exact" else steps_of()
    options = Rule(rule, steps=steps)
    room = 1e-12 if method == "exact" else spread(x, options, "auto", method)
    assert_near(y, polar(x, steps), room)


# To the bit

FORMS = [
    {},
    {"ns_method": "standard"},
    {"ns_method": "gram"},
    {"ns_method": "gram", "ns_dtype": "bfloat16"},
    {"ns_method": "standard", "ns_dtype": "bfloat16"},
    {"ns_method": "standard", "ns_dtype": "float16"},
]
forms = pytest.mark.parametrize("form", FORMS, ids=lambda f: "-".join(f.values()) or "auto")


# The last is too large for the kernel of small matrices.
@forms
@pytest.mark.parametrize("shape", [*SHAPES, (130, 150)])
@pytest.mark.parametrize("rule", RULES)
def test_signs_of_rows_and_columns(rule, shape, form, device):
    x = torch.randn(shape, device=device)
    rows = torch.randn(shape[0], 1, device=device).sign()
    columns = torch.randn(1, shape[1], device=device).sign()
    flipped = FUNCTIONS[rule](rows * x * columns, **form)
    assert torch.equal(flipped, rows * FUNCTIONS[rule](x, **form) * columns)


@pytest.mark.parametrize("form", FORMS + [{"ns_method": "exact"}])
@pytest.mark.parametrize("rule", RULES)
def test_powers_of_two(rule, form, device):
    x = torch.randn(6, 10, device=device)
    expected = FUNCTIONS[rule](x, **form)
    for k in (-110, -63, -1, 1, 40, 120):
        assert torch.equal(FUNCTIONS[rule](x * 2.0**k, **form), expected)


@forms
@pytest.mark.parametrize("shape", [(6, 10), (9, 7), (33, 70), (130, 150)])
@pytest.mark.parametrize("rule", RULES)
def test_position_in_a_batch(rule, shape, form, device):
    """Whatever stands beside it, and when nothing does: to the bit, but for what cuBLAS multiplies,
    which may take another kernel for another batch."""
    batch = torch.randn(3, *shape, device=device)
    first = FUNCTIONS[rule](batch, **form)[1]
    by_cublas = device.type == "cuda" and shape[takes_columns(rule, *shape)] > 128
    options = {"ns_dtype": "float16", **form}
    room = by_cublas and tolerance(Rule(rule), batch[1].cpu(), compute=torch.float32, **options)

    def same(y):
        if by_cublas:
            assert_near(y, first.cpu().double(), room)
        else:
            assert torch.equal(y, first)

    same(FUNCTIONS[rule](batch[1], **form))
    for place in range(3):
        other = torch.randn(3, *shape, device=device)
        other[place] = batch[1]
        same(FUNCTIONS[rule](other, **form)[place])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ns_dtype", ["float32", "bfloat16", "float16"])
def test_small_integers_are_exact(ns_dtype, method, device):
    """Sixteen entries ±1: ‖X‖_F = 4, and one step of short coefficients rounds nowhere."""
    x = torch.zeros(6, 12)
    x.view(-1)[torch.randperm(72)[:16]] = torch.randn(16).sign()
    x = x.to(device)
    step = {"ns_coefficients": (1.5, -0.5, 0.0), "ns_steps": 1}
    y = F.spectral(x, ns_method=method, ns_dtype=ns_dtype, **step)
    unit = x.double() / 4
    assert torch.equal(y.double(), 1.5 * unit - 0.5 * unit @ unit.T @ unit)
    order = torch.randperm(6, device=device)
    permuted = F.spectral(x[order], ns_method=method, ns_dtype=ns_dtype, **step)
    assert torch.equal(permuted, y[order])
    mirrored = F.spectral(x.mT, ns_method=method, ns_dtype=ns_dtype, **step)
    assert torch.equal(mirrored, y.mT)


@forms
def test_nothing_depends_on_earlier_memory(form, device):
    x = torch.randn(3, 6, 10, device=device)
    clean = [FUNCTIONS[rule](x, alpha=0.5, **form) for rule in RULES]
    torch.use_deterministic_algorithms(True)  # fills what torch allocates with NaN
    try:
        poisoned = [FUNCTIONS[rule](x, alpha=0.5, **form) for rule in RULES]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(clean, poisoned, strict=True))
