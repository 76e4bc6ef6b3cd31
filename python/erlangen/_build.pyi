"""What this build was made for; the module is written by CMake."""

from typing import TypedDict

class _Info(TypedDict):
    version: str
    torch: str
    cuda: str  # "" without CUDA kernels
    architectures: list[str]
    architectures_from: str
    compiler: str
    wgmma: bool

INFO: _Info
