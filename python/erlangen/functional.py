"""The bare rules as pure functions on tensors [..., m, n], each matrix on its own.

For people who build their own optimizer. They are the operators torch.ops.erlangen.*, so that
torch.compile and torch.export see through them. Formulas: arXiv 2605.18106. Results have the
input's shape and dtype and require no gradient; zero rows and zero matrices map to zero.

Raises TypeError for a tensor that is not floating point and for an option of another type, and
ValueError for a tensor of fewer than two dimensions and for an option value that does not exist.
"""

import torch
from torch import Tensor

from . import _C  # noqa: F401  (registers the operators)

__all__ = [
    "center",
    "column_norm",
    "hybrid",
    "left_spectral",
    "right_spectral",
    "row_norm",
    "spectral",
]

_ops = torch.ops.erlangen


def _polar_args(ns_coefficients, ns_steps, ns_method, ns_dtype) -> dict:
    """The arguments of the polar iteration as the operators take them."""
    args = {"ns_steps": ns_steps, "ns_method": ns_method, "ns_dtype": ns_dtype}
    # The operators' own message for an argument of another type is their whole schema.
    if ns_steps is not None and not isinstance(ns_steps, int):
        raise TypeError(f"ns_steps is {ns_steps!r}; allowed: None or an int")
    for name in ("ns_method", "ns_dtype"):
        if not isinstance(args[name], str):
            raise TypeError(f"{name} is {args[name]!r}; allowed: a str")
    if isinstance(ns_coefficients, str):
        return args | {"ns_coefficients": ns_coefficients}
    try:
        triples = list(ns_coefficients)
        if triples and not isinstance(triples[0], (list, tuple)):
            triples = [triples]  # one triple, for all steps
        if not triples or any(len(triple) != 3 for triple in triples):
            raise ValueError
        return args | {"ns_triples": [float(c) for triple in triples for c in triple]}
    except (TypeError, ValueError):
        raise TypeError(
            f"ns_coefficients is {ns_coefficients!r}; allowed: the name of a set, three numbers, "
            "or a list of such triples"
        ) from None


def _tensor(x) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}; allowed: a tensor [..., m, n]")
    return x


def center(x: Tensor) -> Tensor:
    """Subtracts the mean over rows (dimension -2): X − 1·mean_rows(X)."""
    return _ops.center(_tensor(x))


def row_norm(x: Tensor) -> Tensor:
    """Rows of unit length."""
    return _ops.row_norm(_tensor(x))


def column_norm(x: Tensor) -> Tensor:
    """Columns of unit length."""
    return _ops.column_norm(_tensor(x))


def spectral(
    x: Tensor,
    *,
    alpha: float = 0.0,
    ns_coefficients="polar_express",
    ns_steps: int | None = None,
    ns_method: str = "auto",
    ns_dtype: str = "auto",
) -> Tensor:
    """The polar factor U·Vᵀ, times the nuclear norm to the power ``alpha``.

    Args:
        x: [..., m, n].
        alpha: exponent of ‖X‖_*.
        ns_coefficients: a named set ("polar_express", "jordan", "you", "deepseek_v4", "cubic"),
            one triple (a, b, c) for all steps, or a list of triples.
        ns_steps: number of steps; None: the set's own. More steps repeat the last triple.
        ns_method: "standard" (on X), "gram" (on the Gram matrix), "exact" (float64), "auto".
        ns_dtype: of the products: "float32", "bfloat16", "float16", "auto".
    """
    polar_args = _polar_args(ns_coefficients, ns_steps, ns_method, ns_dtype)
    return _ops.spectral(_tensor(x), alpha=alpha, **polar_args)


def right_spectral(
    x: Tensor,
    *,
    alpha: float = 0.0,
    ns_coefficients="polar_express",
    ns_steps: int | None = None,
    ns_method: str = "auto",
    ns_dtype: str = "auto",
) -> Tensor:
    """X (XᵀX)^(-1/2), through the n×n Gram matrix. Arguments as :func:`spectral`."""
    polar_args = _polar_args(ns_coefficients, ns_steps, ns_method, ns_dtype)
    return _ops.right_spectral(_tensor(x), alpha=alpha, **polar_args)


def left_spectral(
    x: Tensor,
    *,
    alpha: float = 0.0,
    ns_coefficients="polar_express",
    ns_steps: int | None = None,
    ns_method: str = "auto",
    ns_dtype: str = "auto",
) -> Tensor:
    """(XXᵀ)^(-1/2) X, through the m×m Gram matrix. Arguments as :func:`spectral`."""
    polar_args = _polar_args(ns_coefficients, ns_steps, ns_method, ns_dtype)
    return _ops.left_spectral(_tensor(x), alpha=alpha, **polar_args)


def hybrid(
    x: Tensor,
    *,
    order: str = "row_then_polar",
    center: bool = False,
    alpha: float = 0.0,
    ns_coefficients="polar_express",
    ns_steps: int | None = None,
    ns_method: str = "auto",
    ns_dtype: str = "auto",
) -> Tensor:
    """Unit rows then polar, or polar then unit rows.

    Args:
        order: "row_then_polar" or "polar_then_row".
        center: subtract the mean row before, between and after.
        alpha: exponent of the nuclear norm of polar's input; only with "row_then_polar".
        ns_coefficients, ns_steps, ns_method, ns_dtype: as in :func:`spectral`.
    """
    polar_args = _polar_args(ns_coefficients, ns_steps, ns_method, ns_dtype)
    return _ops.hybrid(_tensor(x), order=order, center=center, alpha=alpha, **polar_args)
