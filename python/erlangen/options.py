"""What a parameter group can say, for editors and type checkers: names, types, meanings."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, TypedDict

__all__ = ["Coefficients", "MuonOptions", "Options", "Scale"]

Scale: TypeAlias = Literal[
    "match_rms_adamw", "original", "spectral_unclamped", "unit_rms_norm", "none"
]
Triple: TypeAlias = Sequence[float]
Coefficients: TypeAlias = (
    Literal["polar_express", "jordan", "you", "deepseek_v4", "cubic"] | Triple | Sequence[Triple]
)


class MuonOptions(TypedDict, total=False):
    """Options that :class:`erlangen.Muon` takes beyond those of torch.optim.Muon."""

    update_scale: float
    """Factor on the group's update, not on its decay: schedulers that set one lr keep the ratios.
    ≥ 0. Default: 1.0."""

    decay: Literal["decoupled", "cautious"]
    """With "cautious" decays only the entries where parameter · update > 0.
    Default: "decoupled"."""

    rule: Literal[
        "spectral", "right_spectral", "left_spectral", "row_norm", "column_norm", "hybrid", "adamw"
    ]
    """The update rule. A group without one is an error. Default: ""."""

    order: Literal["row_then_polar", "polar_then_row"]
    """Of the rule hybrid. Default: "row_then_polar"."""

    center: bool
    """Projects the mean over rows out of the rule's input and of its result. Default: False."""

    layout: Sequence[dict[str, Any]] | None
    """How the tensor is a batch of logical matrices, as a list of steps: {"transpose": True},
    {"sections": [a, b], "dim": d}, {"heads": n, "dim": d}, {"pairs": "concatenated" |
    "interleaved", "dim": d}, {"flatten": True}, {"flatten": "kernels"}; dim is -2 (rows) or -1
    (columns). None: the last two dimensions are the matrix. Default: None."""

    support: Literal["all", "gradient"]
    """With "gradient" rows whose gradient is zero keep their value. Default: "all"."""

    momentum_order: Literal["momentum_first", "polar_first"]
    """With "polar_first" averages directions instead of gradients. Default: "momentum_first"."""

    alpha: float
    """Exponent of the nuclear norm that multiplies a polar direction. Default: 0.0."""

    ns_method: Literal["auto", "standard", "gram", "exact"]
    """The polar iteration on the matrix, on its Gram matrix, or a decomposition in float64;
    "auto" is the cheaper of the first two. Default: "auto"."""

    ns_dtype: Literal["auto", "float32", "bfloat16", "float16"]
    """Type of the polar iteration's products. "auto": float64 for float64 parameters, float16 on
    CUDA, bfloat16 on CPUs with instructions for it where that is faster. Default: "auto"."""

    ns_eps: float
    """Least Frobenius norm that the polar iteration divides by. Default: 0.0."""

    betas: Sequence[float]
    """adamw's decay rates of its two moments, each in [0, 1). Default: (0.9, 0.95)."""

    state_dtype: Literal["auto", "bfloat16"]
    """Type of momentum and moments. "auto": float64 for float64 parameters, else float32.
    Default: "auto"."""

    stochastic_rounding: bool
    """Rounds bfloat16 parameters up or down with probability by distance. Default: False."""

    seed: int
    """Of the noise of stochastic rounding. Default: 0."""

    maximize: bool
    """Ascends instead of descending. Default: False."""

    capturable: bool
    """Steps can be captured in a CUDA graph, as in torch. Default: False."""

    foreach: bool | None
    """torch's; changes nothing."""

    fused: bool | None
    """torch's; changes nothing."""

    differentiable: Literal[False] | None
    """torch's; only False."""

    amsgrad: Literal[False] | None
    """torch's; only False."""


class Options(MuonOptions, total=False):
    """Options of :class:`erlangen.Equivariant` beyond lr and weight_decay, all by keyword.

    A group's own value beats the optimizer's. csrc/include/erlangen/options.h is the definition for
    both languages and says more on each.
    """

    momentum: float
    """β of the zero-start average m ← β·m + (1 − β)·g, in [0, 1). Default: 0.95."""

    nesterov: bool | None
    """Takes the direction from lerp(g, m, β) instead of m. None: for spectral only.
    Default: None."""

    adjust_lr_fn: Scale
    """Scale by the logical matrix's shape m×n, for polar rules: "match_rms_adamw" 0.2·√max(m, n),
    "original" √max(1, m/n) (Muon), "spectral_unclamped" √(m/n) (Bernstein), "unit_rms_norm"
    √(m/n) (Scion), "none" 1 (the paper). Default: "match_rms_adamw"."""

    ns_coefficients: Coefficients
    """The polynomials a·x + b·x³ + c·x⁵ of the polar iteration: a named set, one triple (a, b, c)
    for all steps, or a list of triples. Default: "polar_express"."""

    ns_steps: int | None
    """Steps of the polar iteration. None: as many as the set has. Default: None."""

    eps: float
    """adamw's, added to the root of the second moment. Default: 1e-08."""
