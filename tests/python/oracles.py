"""Every rule, layout and step once more: plain float64 with SVDs and explicit indices.

Written from the formulas (arXiv 2605.18106; Jordan's, Moonlight's and Scion's scales by shape), and
sharing no code with the library.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

RULES = ("spectral", "right_spectral", "left_spectral", "row_norm", "column_norm", "hybrid")
POLAR_RULES = ("spectral", "right_spectral", "left_spectral", "hybrid")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Coefficient sets

_JORDAN = (3.4445, -4.7750, 2.0315)
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
SETS = {
    "jordan": [_JORDAN] * 5,
    "you": [
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ],
    # The safety 1.05 divides the argument of all but the last, repeated step.
    "polar_express": [(a / 1.05, b / 1.05**3, c / 1.05**5) for a, b, c in _POLAR_EXPRESS[:5]],
    "deepseek_v4": [_JORDAN] * 8 + [(2.0, -1.5, 0.5)] * 2,
    "cubic": [(1.5, -0.5, 0.0)] * 15,
}


def steps_of(coefficients="polar_express", ns_steps: int | None = None) -> list:
    """The triples of each step: fewer steps take the first, more repeat the last."""
    if coefficients == "polar_express" and ns_steps and ns_steps > 5:
        tail = [(a / 1.05, b / 1.05**3, c / 1.05**5) for a, b, c in _POLAR_EXPRESS]
        triples = tail + [(1.875, -1.25, 0.375)]
    elif isinstance(coefficients, str):
        triples = SETS[coefficients]
    elif isinstance(coefficients[0], float | int):
        triples = [tuple(coefficients)] * 5
    else:
        triples = [tuple(triple) for triple in coefficients]
    count = ns_steps or len(triples)
    return (triples + [triples[-1]] * count)[:count]


def composed(sigma: Tensor, steps: list) -> Tensor:
    """p(σ), the polynomials one after the other, in float64."""
    sigma = sigma.double()
    for a, b, c in steps:
        sigma = sigma * (a + b * sigma**2 + c * sigma**4)
    return sigma


# The rules, on one matrix


def center(x: Tensor) -> Tensor:
    x = x.double()
    return x - torch.ones(x.shape[0], 1, dtype=x.dtype) * x.sum(0) / x.shape[0]


def row_norm(x: Tensor) -> Tensor:
    rows = [row / row.norm() if row.norm() > 0 else row for row in x.double().unbind(0)]
    return torch.stack(rows)


def polar(x: Tensor, steps: list | None, norm_at_least: float = 0.0) -> Tensor:
    """U·p(σ/‖X‖_F)·Vᵀ; with steps=None the exact polar factor over the nonzero σ."""
    u, sigma, vh = torch.linalg.svd(x.double(), full_matrices=False)
    if steps is None:
        gain = (sigma > sigma.max() * max(x.shape) * 2.0**-52).double()
    else:
        norm = max(float(x.double().norm()), norm_at_least)
        gain = composed(sigma / norm, steps) if norm > 0 else torch.zeros_like(sigma)
    # Zero rows and columns are zero, not the decomposition's rounding.
    filled = [(x != 0).any(dim, keepdim=True) for dim in (0, 1)]
    return u @ torch.diag(gain) @ vh * filled[0] * filled[1]


@dataclass
class Rule:
    """One rule with the options that decide its direction."""

    rule: str
    order: str = "row_then_polar"
    center: bool = False
    alpha: float = 0.0
    adjust_lr_fn: str = "none"
    steps: list | None = field(default_factory=steps_of)
    norm_at_least: float = 0.0

    @property
    def is_polar(self) -> bool:
        return self.rule in POLAR_RULES

    def project(self, x: Tensor) -> Tensor:
        return center(x) if self.center else x.double()

    def polar_input(self, x: Tensor) -> Tensor:
        z = self.project(x)
        if self.rule == "hybrid" and self.order == "row_then_polar":
            z = self.project(row_norm(z))
        return z

    def direction(self, x: Tensor) -> Tensor:
        """The direction of one matrix, without scale and factor."""
        z = self.polar_input(x)
        if self.rule == "row_norm":
            value = row_norm(z)
        elif self.rule == "column_norm":
            value = row_norm(z.T).T
        else:
            value = polar(z, self.steps, self.norm_at_least)
            if self.rule == "hybrid" and self.order == "polar_then_row":
                value = row_norm(value)
        return self.project(value)

    def factor(self, x: Tensor) -> float:
        """‖Z‖_*^alpha, as ⟨Z, polar(Z)⟩ with the polar factor that is applied."""
        if self.alpha == 0.0:
            return 1.0
        z = self.polar_input(x)
        return float((z * polar(z, self.steps)).sum().clamp(min=0)) ** self.alpha

    def scale(self, m: int, n: int) -> float:
        unit_rows = self.rule == "row_norm" or (
            self.rule == "hybrid" and self.order == "polar_then_row"
        )
        kind = "rows" if unit_rows else "columns" if self.rule == "column_norm" else "polar"
        table = {
            "match_rms_adamw": {
                "polar": 0.2 * math.sqrt(max(m, n)),
                "rows": 0.2 * math.sqrt(n),
                "columns": 0.2 * math.sqrt(m),
            },
            "original": {"polar": math.sqrt(max(1.0, m / n)), "rows": 1.0, "columns": 1.0},
            "spectral_unclamped": {"polar": math.sqrt(m / n), "rows": 1.0, "columns": 1.0},
            "unit_rms_norm": {
                "polar": math.sqrt(m / n),
                "rows": 1 / math.sqrt(n),
                "columns": math.sqrt(m),
            },
            "none": {"polar": 1.0, "rows": 1.0, "columns": 1.0},
        }
        return table[self.adjust_lr_fn][kind]


def apply(rule: Rule, x: Tensor) -> Tensor:
    """The rule on [..., m, n], each matrix on its own, factor included, scale not."""
    flat = x.reshape(-1, *x.shape[-2:])
    return torch.stack([rule.direction(m) * rule.factor(m) for m in flat]).reshape(x.shape)


# Layouts: which element of the tensor stands where


def _pairs(index: list, interleaved: bool) -> list:
    """Rows of slices: unit i's gate and up slices become one row."""
    r = len(index) // 2
    gates = [2 * i if interleaved else i for i in range(r)]
    ups = [2 * i + 1 if interleaved else r + i for i in range(r)]
    return [index[gate] + index[up] for gate, up in zip(gates, ups, strict=True)]


def _transpose(index: list) -> list:
    return [list(column) for column in zip(*index, strict=True)]


def _cut(index: list, sizes: list, dim: int) -> list:
    if dim == -1:
        return [_transpose(part) for part in _cut(_transpose(index), sizes, -2)]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [index[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def logical_matrices(layout: list | None, shape: tuple) -> list[Tensor]:
    """For each logical matrix, the flat positions of its elements in a tensor of this shape."""
    steps = list(layout or [])
    positions = torch.arange(math.prod(shape))
    flatten = steps.pop(0)["flatten"] if steps and "flatten" in steps[0] else False
    if flatten is True or (flatten == "kernels" and len(shape) in (4, 5)):
        matrices = [positions.reshape(shape[0], -1).tolist()]
    else:
        matrices = positions.reshape(-1, shape[-2], shape[-1]).tolist()
    for step in steps:
        dim = step.get("dim", -2)
        result = []
        for index in matrices:
            size = len(index) if dim == -2 else len(index[0])
            if "transpose" in step:
                result.append(_transpose(index))
            elif "sections" in step:
                result += _cut(index, step["sections"], dim)
            elif "heads" in step:
                n = step["heads"]
                result += _cut(index, [size // n] * n, dim)
            else:
                slices = index if dim == -2 else _transpose(index)
                result.append(_pairs(slices, step["pairs"] == "interleaved"))
        matrices = result
    return [torch.tensor(index) for index in matrices]


def per_matrix(layout: list | None, x: Tensor, function) -> Tensor:
    """Applies a function to each logical matrix of x."""
    flat = x.double().reshape(-1)
    out = torch.full_like(flat, math.nan)
    for index in logical_matrices(layout, tuple(x.shape)):
        out[index.reshape(-1)] = function(flat[index]).reshape(-1)
    return out.reshape(x.shape)


# One optimizer step


@dataclass
class Step:
    """The options of a group, and what a step does with them."""

    rule: Rule
    lr: float = 1e-3
    update_scale: float = 1.0
    weight_decay: float = 1e-2
    decay: str = "decoupled"
    layout: list | None = None
    support: str = "all"
    momentum: float = 0.95
    nesterov: bool | None = None
    momentum_order: str = "momentum_first"
    maximize: bool = False

    def _averaged(self, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        beta = self.momentum
        m = beta * m + (1 - beta) * x
        nesterov = self.rule.rule == "spectral" if self.nesterov is None else self.nesterov
        return m, ((1 - beta) * x + beta * m if nesterov else m)

    def _each(self, x: Tensor, function) -> Tensor:
        return per_matrix(self.layout, x, function)

    def update(self, g: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """The momentum after, and what lr·update_scale multiplies."""
        rule = self.rule
        g = -g.double() if self.maximize else g.double()
        scale = self._each(g, lambda x: torch.full_like(x, rule.scale(*x.shape)))
        if self.momentum_order == "polar_first":
            m, u = self._averaged(self._each(g, rule.direction), m.double())
            return m, scale * self._each(g, lambda x: torch.full_like(x, rule.factor(x))) * u
        m, x = self._averaged(g, m.double())
        return m, scale * self._each(x, lambda z: rule.direction(z) * rule.factor(z))

    def __call__(self, p: Tensor, g: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """Parameter and momentum after the step."""
        m, update = self.update(g, m)
        scaled = (self.lr, self.update_scale, self.weight_decay, self.decay, self.support)
        return applied(p.double(), g, update, *scaled), m


def applied(p, g, update, lr, update_scale, weight_decay, decay, support) -> Tensor:
    """The parameter after decay and update."""
    decays = (p * update > 0).double() if decay == "cautious" else torch.ones_like(p)
    after = p - lr * weight_decay * decays * p - lr * update_scale * update
    if support == "gradient":
        seen = (g != 0).any(-1, keepdim=True)
        after = torch.where(seen, after, p)
    return after


def adamw(
    p, g, m, v, *, step, lr, weight_decay, betas=(0.9, 0.95), eps=1e-8, update_scale=1.0,
    decay="decoupled", support="all",
):  # fmt: skip
    """AdamW (Loshchilov & Hutter), bias-corrected."""
    p, g, m, v = (t.double() for t in (p, g, m, v))
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g * g
    update = m / (1 - betas[0] ** step) / ((v / (1 - betas[1] ** step)).sqrt() + eps)
    return applied(p, g, update, lr, update_scale, weight_decay, decay, support), m, v


# Inputs


def with_singular_values(sigma, m: int, n: int, dtype=torch.float64) -> Tensor:
    """A random m×n matrix with these singular values, the others zero."""
    sigma = torch.as_tensor(sigma, dtype=torch.float64)
    u = torch.linalg.qr(torch.randn(m, len(sigma), dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(n, len(sigma), dtype=torch.float64))[0]
    return (u @ torch.diag(sigma) @ v.T).to(dtype)
