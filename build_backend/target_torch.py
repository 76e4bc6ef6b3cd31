"""Which torch a build is for: that of the environment which the wheel will be installed into.

pip builds in isolation, under that environment's own interpreter, with its site-packages hidden. A
torch asked for as a requirement of the build would be another one, and the wheel made with it,
which serves one minor version of torch only, would replace the user's. So it is looked up past the
isolation, without being imported.
"""

import contextlib
import importlib.metadata
import importlib.util
import site
import sys
from pathlib import Path
from typing import NamedTuple

OLDEST, NEWEST = (2, 11), (2, 15)
SUPPORTED = f"torch>={OLDEST[0]}.{OLDEST[1]},<{NEWEST[0]}.{NEWEST[1] + 1}"


class Torch(NamedTuple):
    folder: Path
    version: str

    def requirement(self) -> str:
        """What a wheel built with it needs: torch promises no ABI across minors."""
        major, minor = self.version.split(".")[:2]
        return f"torch=={major}.{minor}.*"

    def supported(self) -> bool:
        major, minor = self.version.split(".")[:2]
        return OLDEST <= (int(major), int(minor)) <= NEWEST


def find() -> Torch | None:
    """The torch that this process could import, else the target environment's; None if none is."""
    spec = importlib.util.find_spec("torch")
    if spec and spec.origin:
        return Torch(Path(spec.origin).parent, importlib.metadata.version("torch"))
    for found in importlib.metadata.distributions(name="torch", path=_site_packages()):
        return Torch(Path(found.locate_file("torch")), found.version)
    return None


def build_requirements() -> list[str]:
    """Nothing where there is a torch to build against, and an end where it is none of those."""
    found = find()
    if found is None:
        say(
            f"no torch in {sys.prefix}: building against the newest of {SUPPORTED}. If that is a "
            "build tool's own environment (uv, python -m build) and yours has a torch to keep, "
            "build with pip there, or with --no-build-isolation."
        )
        return [SUPPORTED]
    where = f"Erlangen: torch {found.version} is installed in {found.folder.parent}"
    instead = (
        "To build against it all the same, pip install setuptools wheel cmake ninja and give pip "
        "--no-build-isolation."
    )
    if not found.supported():
        sys.exit(f"{where} and left as it is; {SUPPORTED} is supported. {instead}")
    if not (found.folder / "include").is_dir():
        sys.exit(f"{where} without headers (is it an editable install?). {instead}")
    return []


def say(text: str) -> None:
    """To the build's log and, because pip hides that, to the terminal if there is one."""
    print(f"Erlangen: {text}", flush=True)
    if not sys.stdout.isatty():
        with contextlib.suppress(OSError), open("/dev/tty", "w") as terminal:
            terminal.write(f"\nErlangen: {text}\n")


def _site_packages() -> list[str]:
    """Where this interpreter looks for packages when none are hidden from it."""
    isolated = sys.prefix != sys.base_prefix and sys.base_prefix not in site.PREFIXES
    return [*([] if isolated else [site.getusersitepackages()]), *site.getsitepackages()]
