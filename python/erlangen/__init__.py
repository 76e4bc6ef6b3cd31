"""Erlangen: optimizers whose update rules respect the symmetry of every weight block."""

from pathlib import Path

import torch  # noqa: F401  (its libraries must be loaded before ours)

from . import _build
from ._version_check import check as _check_versions

_check_versions(_build.INFO)  # before _C, which another torch could not load

from . import functional, integrations  # noqa: E402
from .optimizer import (  # noqa: E402
    Equivariant,
    Hybrid,
    LeftSpectral,
    Muon,
    PolarGrad,
    RightSpectral,
    RowNorm,
)
from .options import Options  # noqa: E402
from .routing import param_groups  # noqa: E402

__version__ = _build.INFO["version"]
#: For CMake: find_package(erlangen) finds this package under this prefix.
cmake_prefix_path = str(Path(__file__).parent)

__all__ = [
    "Equivariant",
    "Hybrid",
    "LeftSpectral",
    "Muon",
    "Options",
    "PolarGrad",
    "RightSpectral",
    "RowNorm",
    "cmake_prefix_path",
    "functional",
    "integrations",
    "param_groups",
]
