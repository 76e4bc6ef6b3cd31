"""Does the torch in hand fit the one that Erlangen was built against?"""

from collections.abc import Mapping
from typing import Any

import torch


def check(built: Mapping[str, Any]) -> None:
    """Raises ImportError if `torch` is of another minor version, or lacks the CUDA, of the build.

    torch promises no ABI across minors: without this the import ends in an undefined symbol, or
    the first call in a crash. Call it before the compiled module is imported.

    Args:
        built: `torch` ("2.11.0") and `cuda` ("13.0", or "" for a build without CUDA kernels).
    """
    advice = (
        "Build Erlangen against the torch in hand (pip install --force-reinstall --no-deps . in "
        "Erlangen's source), or install the torch it was built for."
    )
    if _numbers(built["torch"]) != _numbers(torch.__version__):
        raise ImportError(
            f"Erlangen was built against torch {built['torch']} and torch {torch.__version__} is "
            f"installed; it works only with the same minor version. {advice}"
        )
    if built["cuda"] and _numbers(built["cuda"])[:1] != _numbers(torch.version.cuda or "")[:1]:
        has = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        raise ImportError(
            f"Erlangen was built with CUDA {built['cuda']} kernels and torch {torch.__version__} "
            f"has {has}. {advice}"
        )


def _numbers(version: str) -> list[str]:
    """Major and minor: ["2", "11"] of "2.11.0+cu130"."""
    return version.split("+")[0].split(".")[:2]
