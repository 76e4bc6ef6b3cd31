"""pip's way into CMake: configure, build, install into the package directory. No sources here."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import target_torch  # build_backend/, which is on the path of every build: pyproject.toml
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def version() -> str:
    text = (ROOT / "CMakeLists.txt").read_text()
    return re.search(r"project\(erlangen VERSION ([0-9.]+)", text).group(1)


def torch_requirement() -> str:
    found = target_torch.find()
    if found:
        return found.requirement()
    if "sdist" in sys.argv:  # what it will be built against is not known yet
        return target_torch.SUPPORTED
    sys.exit("Erlangen is built against torch: install torch first, or drop --no-build-isolation.")


def tool(name: str) -> str:
    """A program of this Python environment, even where its bin directory is not in PATH."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    if found is None:
        sys.exit(f"Erlangen needs {name} to build: pip install {name}")
    return found


class CMakeBuild(build_ext):
    """Builds with CMake. An editable install goes into the source's own package directory."""

    def run(self):
        in_source = self.inplace or getattr(self, "editable_mode", False)
        parent = ROOT / "python" if in_source else Path(self.build_lib).resolve()
        build = ROOT / "build" / ("editable" if in_source else "wheel")
        # Under build isolation ninja and perhaps torch lie elsewhere each time: CMake begins anew,
        # as with --fresh, which would remove the objects too.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        for compilers in (build / "CMakeFiles").glob("[0-9]*"):
            shutil.rmtree(compilers)
        configure = [tool("cmake"), "-S", ROOT, "-B", build, "-G", "Ninja"]
        configure += [
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DCMAKE_INSTALL_PREFIX={parent / 'erlangen'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_PREFIX_PATH={target_torch.find().folder}",
            "-DERLANGEN_BUILD_PYTHON=ON",
        ]
        configure += os.environ.get("CMAKE_ARGS", "").split()
        decisions = []
        with subprocess.Popen(configure, stdout=subprocess.PIPE, text=True) as running:
            for line in running.stdout:
                print(line, end="", flush=True)
                decisions += re.findall("-- Erlangen: (.*)", line)
        if running.returncode:
            sys.exit(f"cmake ended with {running.returncode}")
        target_torch.say("; ".join(decisions))
        subprocess.run([tool("cmake"), "--build", build, "--target", "install"], check=True)

    # What setuptools asks of an extension that it would have compiled itself.
    def get_outputs(self):
        return []

    def get_output_mapping(self):
        return {}

    def get_source_files(self):
        return []


setup(
    version=version(),
    install_requires=[torch_requirement()],
    ext_modules=[Extension("erlangen._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
