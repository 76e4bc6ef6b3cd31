"""What the compiler made of the CUDA kernels, read from the installed library: no GPU needed."""

import os
import re
import shutil
import subprocess
import sysconfig
from collections import defaultdict
from pathlib import Path

import erlangen
import pytest
import torch
from erlangen._build import INFO
from torch.utils.cpp_extension import CUDA_HOME

LIBRARY = Path(erlangen.__file__).parent / "lib/liberlangen.so"

# Kernels that may use local memory: part of the name, and why.
LOCAL_MEMORY: dict[str, str] = {}

# Part of a kernel's name, and what has to be in its machine code: for which architectures, and the
# instructions. HMMA and HGMMA multiply matrices, UTMALDG and UTMASTG are TMA's loads and stores.
INSTRUCTIONS = {
    "polar_iteration_kernel": (r"\d+[af]?", ["HMMA", "LDGSTS", "LDSM"]),
    "symmetric_product_kernel": (r"(?!90a)\d+[af]?", ["HMMA", "LDGSTS", "LDSM"]),
    "LowerTriangle": ("90a", ["HGMMA", "UTMALDG", "UTMALDG.*MULTICAST", "UTMASTG"]),
}


def asked_for() -> set[str]:
    """Architectures of which there must be machine code: 80 and 80-real, not 80-virtual."""
    names = [name for name in INFO["architectures"] if not name.endswith("-virtual")]
    return {name.removesuffix("-real") for name in names}


def cuobjdump(*options: str) -> str:
    """From the CUDA toolkit in PATH, or from Python packages; it calls nvdisasm by name."""
    packaged = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin"), reverse=True)
    path = os.pathsep.join([os.environ["PATH"], *map(str, packaged)])
    for tool in ("cuobjdump", "nvdisasm"):
        assert shutil.which(tool, path=path), f"no {tool}: pip install nvidia-cuda-{tool}"
    program = shutil.which("cuobjdump", path=path)
    env = {**os.environ, "PATH": path}
    done = subprocess.run([program, *options, LIBRARY], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def resources() -> dict[str, dict[str, dict[str, int]]]:
    """{architecture: {kernel: {"REG": 40, "STACK": 0, ...}}}"""
    found = defaultdict(dict)
    architecture = kernel = None
    for line in cuobjdump("--dump-resource-usage").splitlines():
        if match := re.match(r"arch = sm_(\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            kernel = match[1]
        elif kernel and "REG:" in line:
            counts = re.findall(r"(\w+)(?:\[\d+\])?:(\d+)", line)
            found[architecture][kernel] = {name: int(count) for name, count in counts}
            kernel = None
    return found


def major_version(nvcc: str) -> str:
    """The major version of the CUDA toolkit, by which nvcc fits torch or not."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    return re.search(r"release (\d+)\.", text)[1]


def test_an_nvcc_that_fits_is_used():
    """A build that quietly left the kernels out would pass whatever else is here."""
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc", path=f"{CUDA_HOME}/bin")
    fits = torch.version.cuda and nvcc and major_version(nvcc) == torch.version.cuda.split(".")[0]
    if fits and INFO["architectures_from"] != "ERLANGEN_CUDA=OFF":
        assert INFO["cuda"], nvcc


if not INFO["cuda"]:

    def test_no_kernels():
        assert INFO["architectures"] == [] and not INFO["wgmma"]
        sections = subprocess.run(["readelf", "-S", LIBRARY], capture_output=True, text=True)
        assert ".text" in sections.stdout and "nv_fatbin" not in sections.stdout

else:

    def test_without_a_gpu_all_architectures_are_built():
        if INFO["architectures_from"] == "no GPU here, so all":
            newer = tuple(map(int, INFO["cuda"].split("."))) >= (12, 8)
            assert asked_for() == ({"80", "90a", "100", "120"} if newer else {"80", "90a"})

    def test_wgmma_kernels_are_built_for_hopper():
        """pip brings CUTLASS's headers; other builds need `pip install nvidia-cutlass==4.2.0.0`."""
        assert INFO["wgmma"] == ("90a" in asked_for())

    def test_architectures(resources):
        """Each kernel for each architecture; those with wgmma for 90a only."""
        assert asked_for() and set(resources) == asked_for()
        for architecture, kernels in resources.items():
            others = {name for name in kernels if "sm90" not in name}
            assert others == {name for name in resources[min(resources)] if "sm90" not in name}
            wgmma = any("LowerTriangle" in name for name in kernels)
            assert wgmma == (architecture == "90a")

    def test_no_local_memory(resources):
        """Neither registers spilled nor arrays that are indexed at run time."""
        used = [
            (architecture, kernel, counts)
            for architecture, kernels in resources.items()
            for kernel, counts in kernels.items()
            if counts["STACK"] or counts["LOCAL"]
            if not any(name in kernel for name in LOCAL_MEMORY)
        ]
        assert not used

    @pytest.mark.parametrize("name", INSTRUCTIONS)
    def test_instructions(resources, name):
        pattern, instructions = INSTRUCTIONS[name]
        for architecture in [a for a in resources if re.fullmatch(pattern, a)]:
            kernels = [kernel for kernel in resources[architecture] if name in kernel]
            assert kernels
            for kernel in kernels:
                code = cuobjdump("--dump-sass", "-arch", f"sm_{architecture}", "-fun", kernel)
                for instruction in instructions:
                    assert re.search(rf"\b{instruction}\b", code), (architecture, kernel)
                # Loads and stores of local memory, should the report have kept silent of them.
                if not any(exempt in kernel for exempt in LOCAL_MEMORY):
                    assert not re.search(r"\b(LDL|STL)\b", code), (architecture, kernel)
