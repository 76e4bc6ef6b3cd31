"""What is installed: usable from CMake without nvcc, and silent about the machine that built it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import erlangen
import pytest
import torch
from conftest import ROOT, CMake
from erlangen import _version_check

PACKAGE = Path(erlangen.__file__).parent


@pytest.fixture(scope="session")
def prefix(tmp_path_factory) -> Path:
    """What CMake installed, moved to where neither torch nor Python is near."""
    path = tmp_path_factory.mktemp("installed") / "prefix"
    for part in ("lib", "include", "share"):
        shutil.copytree(PACKAGE / part, path / part)
    return path


@pytest.fixture(scope="session")
def without_nvcc() -> dict:
    """An environment in which nvcc cannot be found."""
    env = {k: v for k, v in os.environ.items() if k not in ("CUDACXX", "CUDA_HOME", "CUDA_PATH")}
    folders = env["PATH"].split(os.pathsep)
    env["PATH"] = os.pathsep.join(f for f in folders if not Path(f, "nvcc").exists())
    return env


def test_no_build_paths(torch_dir):
    # Of a package directory what CMake installs: an editable install's has Python's files too.
    parts = [PACKAGE / "lib", PACKAGE / "include", PACKAGE / "share", *PACKAGE.glob("_C*.so")]
    files = [file for part in parts for file in (part, *part.rglob("*")) if file.is_file()]
    assert {"liberlangen.so", "erlangen.h", "erlangenConfig.cmake"} <= {f.name for f in files}
    unwanted = [f"{ROOT}/", f"{Path.home()}/", f"{torch_dir}", f"{sys.prefix}/"]
    unwanted += ["pip-build-env", "pip-req-build"]  # where pip builds in isolation
    for file in files:
        data = file.read_bytes()
        found = [text for text in unwanted if text.encode() in data]
        assert not found, f"{file} contains {found}"
        if file.suffix == ".so":
            dynamic = subprocess.run(["readelf", "-d", file], text=True, capture_output=True).stdout
            for paths in re.findall(r"R(?:UN)?PATH.*\[(.*)\]", dynamic):
                assert all(path.startswith("$ORIGIN") for path in paths.split(":")), (file, paths)


def test_package_holds_no_tests():
    assert not list(PACKAGE.rglob("*test*"))


@pytest.mark.parametrize("which", ["prefix", "package"])
def test_consumer(which, request, tmp_path, torch_dir, without_nvcc):
    if which == "prefix":
        found_in = f"{request.getfixturevalue('prefix')};{torch_dir}"
    else:  # as the README says it; torch is found beside the package or through python
        command = [sys.executable, "-c", "import erlangen; print(erlangen.cmake_prefix_path)"]
        done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=True)
        found_in = done.stdout.strip()
    cmake = CMake(without_nvcc)
    assert shutil.which("nvcc", path=cmake.env["PATH"]) is None
    cmake.configure(ROOT / "tests/consumer", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={found_in}")
    assert "CUDA_COMPILER" not in (tmp_path / "build/CMakeCache.txt").read_text()
    cmake.build(tmp_path / "build")
    assert "erlangen works" in cmake.run(tmp_path / "build/consumer", cwd=tmp_path)


def test_consumer_with_another_torch(prefix, tmp_path, torch_dir):
    """find_package says which torch is there and which is needed."""
    shutil.copytree(prefix, tmp_path / "prefix")
    config = tmp_path / "prefix/share/cmake/erlangen/erlangenConfig.cmake"
    version = torch.__version__.split("+")[0]
    text = config.read_text()
    assert f'erlangen_TORCH_VERSION "{version}"' in text
    config.write_text(text.replace(f'"{version}"', '"1.99.0"'))
    out = CMake().configure(
        ROOT / "tests/consumer",
        tmp_path / "build",
        f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'};{torch_dir}",
        ok=False,
    )
    out = " ".join(out.split())
    assert "built against torch 1.99.0" in out and f"is {version}" in out


def test_import_checks_torch():
    here = {"torch": torch.__version__.split("+")[0], "cuda": torch.version.cuda or ""}
    _version_check.check(here)
    _version_check.check({**here, "cuda": ""})  # a build without kernels serves any torch
    major, minor, *_ = here["torch"].split(".")
    _version_check.check({**here, "torch": f"{major}.{minor}.99"})
    with pytest.raises(ImportError, match=r"against torch 1\.99\.0 and torch .* is installed"):
        _version_check.check({**here, "torch": "1.99.0"})
    with pytest.raises(ImportError, match=r"built with CUDA 99\.0 kernels and torch"):
        _version_check.check({**here, "cuda": "99.0"})
