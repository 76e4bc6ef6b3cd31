"""Shared by all tests: seeds, devices, the CMake build, and a count of what had no GPU."""

import fcntl
import filecmp
import os
import subprocess
import sysconfig
from pathlib import Path

# Read when torch loads: threads that wait give their core to pytest-xdist's other process.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import erlangen
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_gpu)])
def device(request) -> torch.device:
    """Every device kind there is; one that is missing is counted as a skip."""
    return torch.device(request.param)


class CMake:
    """CMake in the environment of this Python, with messages that show the end of its output."""

    def __init__(self, env: dict | None = None):
        self.env = dict(os.environ if env is None else env)
        # First: programs of this environment, which may not be activated.
        self.env["PATH"] = sysconfig.get_path("scripts") + os.pathsep + self.env["PATH"]

    def run(self, *command, ok: bool = True, cwd=None) -> str:
        done = subprocess.run(
            [str(word) for word in command],
            env=self.env,
            cwd=cwd,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if ok != (done.returncode == 0):
            said = f"exit {done.returncode} from {' '.join(map(str, command))}"
            pytest.fail(f"{said}\n{done.stdout[-8000:]}", pytrace=False)
        return done.stdout

    def configure(self, source, build, *options, ok: bool = True) -> str:
        command = ["cmake", "-S", source, "-B", build, "-G", "Ninja", *options]
        return self.run(*command, ok=ok)

    def build(self, build) -> str:
        return self.run("cmake", "--build", build, "--parallel", jobs())


def jobs() -> str:
    return os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))


@pytest.fixture(scope="session")
def torch_dir() -> Path:
    return Path(torch.__file__).parent


@pytest.fixture(scope="session")
def cmake_build(request) -> Path:
    """The C++ tests, built against the Erlangen that is imported here.

    Kept in pytest's cache, so the next run is quick.
    """
    package = Path(erlangen.__file__).parent
    headers, installed = ROOT / "csrc/include/erlangen", package / "include/erlangen"
    names = os.listdir(headers)
    _, *others = filecmp.cmpfiles(headers, installed, names, shallow=False)
    if any(others):
        pytest.fail(f"{package} was not built from these sources: {sum(others, [])} differ")
    build = Path(request.config.cache.mkdir("erlangen-cmake"))
    cmake = CMake()
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", "")
    with open(build / "built-by-run", "a+") as last:
        fcntl.flock(last, fcntl.LOCK_EX)  # of pytest-xdist's processes the first one builds
        last.seek(0)
        if not run or last.read() != run:
            (build / "CMakeCache.txt").unlink(missing_ok=True)  # where another Erlangen was found
            prefix = f"-DCMAKE_PREFIX_PATH={erlangen.cmake_prefix_path}"
            cmake.configure(ROOT / "tests/cpp", build, prefix)
            cmake.build(build)
            last.truncate(0)
            last.write(run)
    return build


def needing_a_gpu(report):
    """The only reason to skip is a missing GPU: whatever else is missing is a failure."""
    if report.skipped and "CUDA device" not in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, but for no missing GPU: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return needing_a_gpu((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return needing_a_gpu((yield))


def pytest_terminal_summary(terminalreporter):
    stats = terminalreporter.stats
    properties = [p for report in stats.get("passed", []) for p in report.user_properties]
    cpp_skips = sum(value for name, value in properties if name == "skipped_cpp_tests")
    terminalreporter.write_line(
        f"skipped for want of a GPU: {len(stats.get('skipped', []))} Python tests, "
        f"{cpp_skips} C++ tests; CUDA device present: {torch.cuda.is_available()}"
    )
