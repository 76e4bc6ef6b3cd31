"""How far rounding may carry a result from its float64 oracle: Monte Carlo arithmetic.

The iteration is run in float64 with random errors of the size of the unit roundoff after every
product (Parker 1997; Jezequel & Chesneaux' CADNA). The spread of some runs, times MARGIN, is the
tolerance. It depends on the input, the polynomials and the roundoffs, never on the library.
"""

import math
from dataclasses import replace

import torch
from oracles import Rule, center, polar, row_norm
from torch import Tensor

MARGIN = 4.0  # a few samples, of noise that is no worst case
SAMPLES = 3
NS_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def full_precision(dtype: torch.dtype) -> str:
    """The ns_dtype of products as precise as everything else; "auto" is so for float64 alone."""
    return "auto" if dtype == torch.float64 else "float32"


def roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def nonzero(sizes: Tensor) -> Tensor:
    """Norms or singular values without those that are float64's rounding of zero."""
    return sizes[sizes > sizes.max() * 1e-12]


def gram_dtype(dtype: torch.dtype, k: int, l: int) -> torch.dtype:  # noqa: E741
    """The type of the k×k matrices of the Gram form: float32 where they cost little beside l."""
    return torch.float32 if dtype == torch.float16 and l >= 48 * k else dtype


def takes_columns(rule: str, m: int, n: int) -> bool:
    return rule == "right_spectral" or (rule != "left_spectral" and m > n)


def is_gram(rule: str, ns_method: str, m: int, n: int, dtype: torch.dtype) -> bool:
    """Whether it goes through the Gram matrix, k×k: with ns_method="auto" where l ≥ 3/2 k,
    but for products in bfloat16."""
    k, l = (n, m) if takes_columns(rule, m, n) else (m, n)  # noqa: E741
    cheaper = 2 * l >= 3 * k and dtype != torch.bfloat16
    return ns_method == "gram" or (ns_method == "auto" and cheaper)


def restarts(steps: list, dtype: torch.dtype) -> list[int]:
    """The steps with which the Gram form begins anew. As documented: in float16 after the first
    step and then every 2, in bfloat16 with each; else before errors of σ² could grow to 1/16."""
    count = len(steps)
    if dtype == torch.float16:
        return [0, *range(1, count, 2)]
    if dtype == torch.bfloat16:
        return [*range(count)]
    result, growth = [0], 1.0
    for i in range(1, count):
        growth *= steps[i - 1][0] ** 2
        if growth * torch.finfo(dtype).eps >= 1 / 16:
            result.append(i)
            growth = 1.0
    return result


class _Noisy:
    """Arithmetic with the errors of one dtype."""

    def __init__(self, dtype: torch.dtype, generator: torch.Generator):
        self.store = roundoff(dtype)
        self.sum = min(self.store, roundoff(torch.float32))  # half precision sums in float32
        self.generator = generator

    def rounded(self, x: Tensor, unit: float | None = None) -> Tensor:
        noise = torch.rand(x.shape, generator=self.generator, dtype=x.dtype) * 2 - 1
        return x + x * noise * (self.store if unit is None else unit)

    def product(self, a: Tensor, b: Tensor, plus: Tensor | float = 0.0) -> Tensor:
        walk = math.sqrt(a.shape[-1]) * self.sum * ((a * a) @ (b * b)).sqrt()
        noise = torch.randn(walk.shape, generator=self.generator, dtype=a.dtype)
        return self.rounded(plus + a @ b + walk * noise)

    def symmetric(self, a: Tensor, b: Tensor, plus: Tensor | float = 0.0) -> Tensor:
        """A product known to be symmetric: above the diagonal is a copy of what is below."""
        lower = self.product(a, b, plus).tril()
        return lower + lower.tril(-1).mT

    def standard(self, x: Tensor, steps: list) -> Tensor:
        for a, b, c in steps:
            gram = self.symmetric(x, x.mT)
            x = self.product(self.symmetric(c * gram, gram, b * gram), x, a * x)
        return x

    def gram(self, x: Tensor, steps: list, square: "_Noisy", begins: list) -> Tensor:
        """Gram Newton-Schulz, begun anew with each of these steps; k×k matrices by `square`."""
        for first, end in zip(begins, [*begins[1:], len(steps)], strict=True):
            r = square.symmetric(x, x.mT)
            q = torch.eye(r.shape[-1], dtype=x.dtype).expand_as(r)
            for a, b, c in steps[first:end]:
                z = square.symmetric(c * r, r, b * r)
                q = square.symmetric(q, z, a * q)
                rz = square.symmetric(r, z, a * r)
                r = square.symmetric(z, rz, a * rz)
            if square.store == self.store:
                x = self.product(q, x)
            else:
                high = self.rounded(q)
                x = self.product(self.rounded(q - high), x, self.product(high, x))
        return x


def polar_errors(
    x: Tensor,
    rule: Rule,
    dtype: torch.dtype,
    gram: bool,
    input_error: float = 0.0,
    samples: int = SAMPLES,
) -> Tensor:
    """Samples of the error of rule's polar factor of x, with products in `dtype`.

    Args:
        input_error: relative (Frobenius) error that x already carries.
        samples: a norm of many entries needs few, single entries need more.
    """
    x = x.double()
    exact = polar(x, rule.steps, rule.norm_at_least)
    norm = max(float(x.norm()), rule.norm_at_least)
    left = not takes_columns(rule.rule, *x.shape)
    generator = torch.Generator().manual_seed(1)
    if norm == 0:
        return torch.zeros(samples, *x.shape, dtype=x.dtype)
    noisy = _Noisy(dtype, generator)
    error = torch.randn((samples, *x.shape), generator=generator, dtype=x.dtype)
    error = error / error.norm(dim=(-2, -1), keepdim=True)
    given = x + error * (input_error * float(x.norm()))
    unit = noisy.rounded(noisy.rounded(given / norm))  # the cast, and division by the norm
    unit = unit if left else unit.mT
    if gram:
        inner = gram_dtype(dtype, *unit.shape[-2:])
        square = noisy if inner == dtype else _Noisy(inner, generator)
        result = noisy.gram(unit, rule.steps, square, restarts(rule.steps, inner))
    else:
        result = noisy.standard(unit, rule.steps)
    return (result if left else result.mT) - exact


def polar_spread(*args, **kwargs) -> float:
    """Frobenius tolerance of what polar_errors samples."""
    return MARGIN * float(polar_errors(*args, **kwargs).norm(dim=(-2, -1)).max())


def input_roundoff(rule: Rule, x: Tensor, compute: torch.dtype, first: float) -> float:
    """The relative error of what goes into polar: averages, means and row norms before it."""
    z = rule.project(x)
    error = first
    if rule.center:
        error = (error + 2 * roundoff(compute)) * float(x.norm() / z.norm())
    if rule.rule == "hybrid" and rule.order == "row_then_polar":
        # A row's relative error stays what it was, plus its own norm's.
        lengths = nonzero(z.norm(dim=1))
        spread = float(lengths.max() / lengths.min()) if rule.center else 1.0
        error = error * spread + 4 * roundoff(compute)
        if rule.center:
            rows = row_norm(z)
            error = (error + 2 * roundoff(compute)) * float(rows.norm() / center(rows).norm())
    return error


def tolerance(
    rule: Rule,
    x: Tensor,
    *,
    compute: torch.dtype,
    ns_dtype: str | None = None,
    ns_method: str = "auto",
    first: float = 0.0,
) -> float:
    """Frobenius tolerance of rule.direction(x)·rule.factor(x) for one matrix.

    Args:
        compute: what everything but the polar products runs in.
        ns_dtype: what those run in; None: `compute`.
        first: relative error of x itself.
    """
    x = x.double()
    if not float(rule.project(x).norm()):
        return 0.0
    u = roundoff(compute)
    value = rule.direction(x)
    # A row's relative error after its norm: sum of n squares, root, division; of columns alike.
    unit_rows = (4 + math.sqrt(max(x.shape))) * u
    if not rule.is_polar:
        z = rule.project(x)
        if rule.center:
            first = (first + 3 * u) * float(x.norm(dim=1).max() / nonzero(z.norm(dim=1)).min())
        rows = row_norm(z) if rule.rule == "row_norm" else value
        return (first + unit_rows + 3 * u * rule.center) * float(rows.norm())
    z = rule.polar_input(x)
    if rule.steps is None:
        # The input's errors, which the smallest singular value amplifies, and those of a float64
        # decomposition: of z, or of a Gram matrix, whose condition is the square.
        sigma = nonzero(torch.linalg.svdvals(z))
        condition = float(sigma.max() / sigma.min())
        one_sided = rule.rule in ("right_spectral", "left_spectral")
        own = max(x.shape) * roundoff(torch.float64) * condition ** (2 if one_sided else 1)
        given = condition * input_roundoff(rule, x, compute, first)
        error = MARGIN * math.sqrt(len(sigma)) * (given + own)
    else:
        dtype = NS_DTYPES[ns_dtype] if ns_dtype else compute
        gram = is_gram(rule.rule, ns_method, *x.shape, dtype)
        error = polar_spread(z, rule, dtype, gram, input_roundoff(rule, x, compute, first))
    if rule.rule == "hybrid" and rule.order == "polar_then_row":
        lengths = nonzero(polar(z, rule.steps).norm(dim=1))
        error = 2 * error / float(lengths.min()) + unit_rows * math.sqrt(len(x))
    factor = rule.factor(x)
    # ⟨Z, U⟩ moves by at most ‖Z‖_F times the error of U, and by its own float64 sum.
    drift = 0.0
    if rule.alpha:
        base = replace(rule, alpha=1.0).factor(x)
        drift = rule.alpha * (error * float(z.norm()) / base + 4 * u)
    # Rounding of the result, and of its mean.
    return factor * (error + float(value.norm()) * (drift + (5 if rule.center else 2) * u))
