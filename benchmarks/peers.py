"""Other implementations, each with one signature, through their public packages where installed.

    torch               torch itself: its product, torch.optim.Muon and its iteration
    dion                pip install "dion[triton] @ git+https://github.com/microsoft/dion"
    emerging_optimizers pip install emerging-optimizers (Python 3.12; NVIDIA-NeMo)
    gram_newton_schulz  pip install --no-build-isolation gram-newton-schulz (Hopper, Blackwell)
    flash_muon          pip install git+https://github.com/nil0x9/flash-muon

All but torch need a GPU. Their first call compiles and tunes kernels, which can take minutes.
"""

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Peer(NamedTuple):
    gram: Callable | None = None  # x [n, k] -> X·Xᵀ
    polar: Callable | None = None  # x [..., m, n] in float32 -> five steps of a polar iteration
    muon: Callable | None = None  # list of 2-D parameters -> optimizer


def one_by_one(polar: Callable) -> Callable:
    """For those whose iteration takes one matrix at a time."""

    def each(x: Tensor):
        return polar(x) if x.ndim == 2 else [polar(matrix) for matrix in x]

    return each


def torch_peer() -> Peer:
    from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, _zeropower_via_newtonschulz

    coefficients = (DEFAULT_A, DEFAULT_B, DEFAULT_C)
    return Peer(
        gram=lambda x: torch.matmul(x, x.mT),
        polar=one_by_one(lambda x: _zeropower_via_newtonschulz(x, coefficients, 5, 1e-7)),
        muon=torch.optim.Muon,
    )


def dion() -> Peer:
    from dion import Muon
    from dion.newton_schulz_triton import newton_schulz_triton, ns_line_1

    return Peer(ns_line_1, newton_schulz_triton, functools.partial(Muon, use_triton=True))


def emerging_optimizers() -> Peer:
    from emerging_optimizers.orthogonalized_optimizers import Muon
    from emerging_optimizers.orthogonalized_optimizers.muon_utils import newton_schulz
    from emerging_optimizers.triton_kernels import tsyrk_ex

    def gram(x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16:
            raise TypeError("bfloat16 only")
        return tsyrk_ex(x)

    def polar(x: Tensor) -> Tensor:
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")  # its way of asking for bfloat16 products
        try:
            return newton_schulz(x, steps=5, use_syrk=True)
        finally:
            torch.set_float32_matmul_precision(precision)

    return Peer(gram, one_by_one(polar), functools.partial(Muon, use_syrk=True))


def gram_newton_schulz() -> Peer:
    from gram_newton_schulz import GramNewtonSchulz, Muon
    from quack.gemm_interface import gemm_symmetric

    polar = GramNewtonSchulz(gram_newton_schulz_reset_iterations=[2])
    return Peer(
        gram=lambda x: gemm_symmetric(x.unsqueeze(0), x.mT.unsqueeze(0)),
        polar=polar,
        muon=functools.partial(Muon, gram_newton_schulz_restart_iterations=[2]),
    )


def flash_muon() -> Peer:
    from flash_muon import fast_newtonschulz, matmul_transpose

    return Peer(matmul_transpose, one_by_one(fast_newtonschulz))  # its optimizer is distributed


PEERS = {
    "torch": torch_peer,
    "dion": dion,
    "emerging_optimizers": emerging_optimizers,
    "gram_newton_schulz": gram_newton_schulz,
    "flash_muon": flash_muon,
}


def find(device: str) -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that are here, and of every one its version or why it is not."""
    found, status = {}, {}
    for name, make in PEERS.items():
        if name != "torch" and importlib.util.find_spec(name) is None:
            status[name] = "not installed"
        elif name != "torch" and device != "cuda":
            status[name] = "needs a GPU"
        else:
            try:
                found[name] = make()
                status[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                status[name] = "version unknown"
            except Exception as error:  # a missing dependency, another version of the package
                status[name] = f"not usable: {error!r}"
    return found, status
