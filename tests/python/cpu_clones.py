"""The instruction sets that the CPU kernels are compiled for, and a way to run each of them.

The compiler makes a copy of a kernel for each, and the loader writes the address of the one that
fits the machine into a slot, through which the kernel is called. Here another is written there."""

import ctypes
import mmap
import platform
import re
import subprocess
from contextlib import contextmanager
from pathlib import Path

import erlangen

LIBRARY = Path(erlangen.__file__).parent / "lib/liberlangen.so"
LEVELS = ["default", "arch_x86_64_v3", "arch_x86_64_v4"] * (platform.machine() == "x86_64")


def _output(*command) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def clones() -> dict[str, dict]:
    """By kernel: where its slot is in the library, and its copies by instruction set."""
    symbols = re.findall(r"^([0-9a-f]+) . (\S+)\.(\w+)$", _output("nm", LIBRARY), flags=re.M)
    relocations = re.findall(
        r"^([0-9a-f]+) .* R_X86_64_IRELATIV\w* +([0-9a-f]+)$",
        _output("readelf", "-rW", LIBRARY),
        flags=re.M,
    )
    slots = {int(resolver, 16): int(slot, 16) for slot, resolver in relocations}
    assert len(slots) == len(relocations)  # else some calls would go on as before
    found = {}
    for address, kernel, part in symbols:
        if part == "resolver":
            found.setdefault(kernel, {})["slot"] = slots[int(address, 16)]
        elif part in LEVELS:
            found.setdefault(kernel, {})[part] = int(address, 16)
    return {kernel: parts for kernel, parts in found.items() if "slot" in parts}


def _base() -> int:
    """Where the loader has put the library."""
    maps, path = Path("/proc/self/maps").read_text(), re.escape(str(LIBRARY.resolve()))
    return int(re.search(rf"^(\w+)-\w+ \S+ 0+ .* {path}$", maps, flags=re.M)[1], 16)


def supported() -> list[str]:
    """Up to the one that the loader has chosen for this machine."""
    if not LEVELS:
        return []
    base, parts = _base(), next(iter(clones().values()))
    chosen = ctypes.c_uint64.from_address(base + parts["slot"]).value - base
    return LEVELS[: 1 + [parts[level] for level in LEVELS].index(chosen)]


@contextmanager
def running(level: str):
    """Every kernel as it was compiled for this instruction set."""
    base = _base()
    before = {}
    for parts in clones().values():
        slot = base + parts["slot"]
        page = slot - slot % mmap.PAGESIZE
        # The loader may have made it read-only.
        writable = mmap.PROT_READ | mmap.PROT_WRITE
        size = ctypes.c_size_t(mmap.PAGESIZE)
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), size, writable) == 0
        before[slot] = ctypes.c_uint64.from_address(slot).value
        assert before[slot] - base in parts.values()
        ctypes.c_uint64.from_address(slot).value = base + parts[level]
    try:
        yield
    finally:
        for slot, address in before.items():
            ctypes.c_uint64.from_address(slot).value = address


SUPPORTED = supported()
