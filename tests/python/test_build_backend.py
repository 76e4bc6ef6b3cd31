"""Which torch pip's build is made against: that of the environment that it installs into."""

import fcntl
import importlib.util
import os
import pty
import subprocess
import termios
import venv
from pathlib import Path

import pytest
from conftest import ROOT

BACKEND = ROOT / "build_backend"


class Environment:
    """A virtual environment, and in it a process as pip starts it to build in isolation."""

    def __init__(self, folder: Path, **options):
        venv.create(folder, symlinks=True, **options)
        self.folder, self.python = folder, folder / "bin/python"
        (self.site_packages,) = folder.glob("lib/python*/site-packages")

    def install_torch(self, version: str, into: Path | None = None, headers: bool = True) -> Path:
        """Nothing but what says that it is there. Returns its folder."""
        into = into or self.site_packages
        info = into / f"torch-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        (into / "torch").mkdir()
        (into / "torch/__init__.py").write_text("raise SystemExit('torch was imported')")
        if headers:
            (into / "torch/include").mkdir()
        return into / "torch"

    def run(self, expression: str, *, hidden=True, env=None) -> subprocess.CompletedProcess:
        """Site-packages are hidden after they were set up, as by the sitecustomize of pip."""
        hide = "sys.path = [p for p in sys.path if 'site-packages' not in p]" if hidden else "pass"
        lines = ["import sys", hide, f"sys.path.insert(0, {str(BACKEND)!r})"]
        lines += ["import target_torch as t", f"print(repr({expression}))"]
        env = {"PATH": os.environ["PATH"], "PYTHONNOUSERSITE": "1", **(env or {})}
        command = [self.python, "-c", "\n".join(lines)]
        # In a session of its own it has no terminal to write to.
        return subprocess.run(
            command, env=env, text=True, capture_output=True, start_new_session=True
        )

    def value(self, expression: str, **options) -> str:
        done = self.run(expression, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]


@pytest.fixture
def environment(tmp_path) -> Environment:
    return Environment(tmp_path / "env")


@pytest.fixture(scope="module")
def target_torch():
    spec = importlib.util.spec_from_file_location("target_torch", BACKEND / "target_torch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def supported(target_torch) -> list[str]:
    (major, first), (_, last) = target_torch.OLDEST, target_torch.NEWEST
    return [f"{major}.{minor}" for minor in range(first, last + 1)]


@pytest.mark.parametrize(
    "index, suffix", [(0, ".0"), (1, ".1+cu130"), (-2, ".0+cpu"), (-1, ".0a0+git1234567")]
)
def test_a_supported_torch_is_taken_and_its_minor_required(
    environment, target_torch, index, suffix
):
    minor = supported(target_torch)[index]
    folder = environment.install_torch(minor + suffix)
    assert environment.value("t.build_requirements()") == "[]"
    assert environment.value("str(t.find().folder)") == repr(str(folder))
    assert environment.value("t.find().requirement()") == repr(f"torch=={minor}.*")


def test_without_a_torch_the_newest_supported_is_asked_for(environment, target_torch):
    first, *_, last = supported(target_torch)
    said, asked_for = environment.run("t.build_requirements()").stdout.splitlines()
    major, minor = last.split(".")
    assert asked_for == repr([f"torch>={first},<{major}.{int(minor) + 1}"])
    assert f"no torch in {environment.folder}" in said and "--no-build-isolation" in said


@pytest.mark.parametrize("step", [-1, 1, 100])
def test_an_unsupported_torch_is_named_and_left(environment, target_torch, step):
    major, minor = target_torch.OLDEST if step < 0 else target_torch.NEWEST
    version = f"{major}.{minor + step}.1"
    environment.install_torch(version)
    done = environment.run("t.build_requirements()")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"torch {version} is installed in {environment.site_packages}" in done.stderr
    assert target_torch.SUPPORTED in done.stderr and "--no-build-isolation" in done.stderr
    # Without isolation nobody asks for requirements, and it is built against.
    assert environment.value("t.find().version", hidden=False) == repr(version)


def test_a_torch_that_cannot_be_built_against_is_named(environment, target_torch):
    version = f"{supported(target_torch)[0]}.0"
    environment.install_torch(version, headers=False)
    done = environment.run("t.build_requirements()")
    assert done.returncode == 1 and "without headers" in done.stderr


def test_what_the_build_can_import_comes_first(environment, target_torch, tmp_path):
    """What was asked for as a requirement of the build lies on the path."""
    first, *_, last = supported(target_torch)
    environment.install_torch(f"{first}.0")
    overlay = environment.install_torch(f"{last}.0", tmp_path / "overlay")
    env = {"PYTHONPATH": str(overlay.parent)}
    assert environment.value("str(t.find().folder)", env=env) == repr(str(overlay))
    assert environment.value("t.find().version", env=env) == repr(f"{last}.0")


@pytest.mark.parametrize("system", [False, True])
def test_the_users_own_packages_count_where_the_environment_sees_them(
    target_torch, tmp_path, system
):
    environment = Environment(tmp_path / "env", system_site_packages=system)
    env = {"PYTHONUSERBASE": str(tmp_path / "user")}
    folder = eval(environment.value("__import__('site').getusersitepackages()", env=env))
    torch = environment.install_torch(f"{supported(target_torch)[0]}.0", Path(folder))
    expected = [str(torch)] if system else []
    found = "[str(t.find().folder)] if t.find() else []"
    assert environment.value(found, env=env) == repr(expected)


def test_what_is_said_reaches_the_terminal_past_pip(environment):
    """pip reads what a build prints, and shows it when the build fails."""
    terminal, other_end = pty.openpty()
    command = [environment.python, "-c", "import target_torch as t; t.say('three minutes')"]
    done = subprocess.run(
        command,
        cwd=BACKEND,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(other_end, termios.TIOCSCTTY, 0),
    )
    os.close(other_end)
    assert done.stdout == "Erlangen: three minutes\n"
    assert os.read(terminal, 1000).decode() == "\r\nErlangen: three minutes\r\n"
    os.close(terminal)


def test_the_backend_has_every_hook(monkeypatch):
    """setuptools' own ask setup.py, which needs a torch, what setup.py needs."""
    monkeypatch.syspath_prepend(BACKEND)
    import erlangen_backend
    from setuptools import build_meta

    for hook in build_meta.__all__:
        ours = getattr(erlangen_backend, hook)
        assert (ours is not getattr(build_meta, hook)) == hook.startswith("get_requires"), hook
    assert erlangen_backend.get_requires_for_build_sdist() == []


def test_the_readme_names_what_is_supported(target_torch):
    first, *_, last = supported(target_torch)
    assert f"torch ({first} to {last})" in (ROOT / "README.md").read_text()
