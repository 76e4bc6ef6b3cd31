"""What type checkers and editors see: the package, README's programs, the stubs, every option."""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import erlangen
import pytest
from conftest import ROOT
from erlangen import _C, _build, options
from erlangen._options import _OF_TORCH, OPTIONS

PACKAGE = Path(erlangen.__file__).parent
README = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.M | re.S)
PREAMBLE = """
import torch
from torch import nn

model: nn.Module = nn.Linear(4, 4)
W = nn.Parameter(torch.zeros(6, 4))
norms = [nn.Parameter(torch.ones(4))]
"""
# Each line is an error of its own.
WRONG = """
import erlangen
from torch import nn

model = nn.Linear(4, 4)
erlangen.Equivariant(model, momentun=0.9)
erlangen.Equivariant(model, lr="fast")
erlangen.Muon(model.parameters(), decay="coupled")
erlangen.RowNorm(model.parameters(), betas=0.9)
erlangen.RowNorm(model)
erlangen.Muon(model.parameters()).step(lambda: 1.0).shape
"""


@pytest.fixture(scope="module")
def errors(tmp_path_factory) -> dict[str, list[int]]:
    """pyright's errors, as the lines of each file that has some; one run for all tests."""
    folder = tmp_path_factory.mktemp("types")
    (folder / "readme.py").write_text(PREAMBLE + "\n".join(README))
    (folder / "wrong.py").write_text(WRONG)
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    command += [ROOT / "python/erlangen", *folder.glob("*.py")]
    env = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}  # no look for a newer one
    done = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True)
    said = json.loads(done.stdout)
    package = list((ROOT / "python/erlangen").rglob("*.py"))
    assert said["summary"]["filesAnalyzed"] > len(package), done.stderr
    found: dict[str, list[int]] = {}
    for one in said["generalDiagnostics"]:
        print(one["file"], one["range"]["start"]["line"] + 1, one["message"])
        found.setdefault(Path(one["file"]).name, []).append(one["range"]["start"]["line"])
    return found


def test_package_and_readme_are_clean(errors):
    assert README and errors.keys() <= {"wrong.py"}


def test_mistakes_are_seen(errors):
    lines = WRONG.splitlines()
    calls = [i for i, line in enumerate(lines) if line.startswith("erlangen.")]
    assert sorted(set(errors["wrong.py"])) == calls


def test_types_are_installed():
    """In a wheel too: .ci/run tests an installed package."""
    assert {"py.typed", "_C.pyi", "_build.pyi"} <= {file.name for file in PACKAGE.iterdir()}


def stub(name: str) -> list[ast.stmt]:
    return ast.parse((ROOT / f"python/erlangen/{name}.pyi").read_text()).body


def shape(function: ast.FunctionDef) -> tuple:
    """Names and defaults of arguments; of those without a name (arg0 in pybind11) the number."""
    args = function.args
    positional = [a.arg for a in args.args if not re.fullmatch(r"arg\d", a.arg)]
    defaults = [ast.unparse(d) for d in args.defaults + args.kw_defaults if d is not None]
    unnamed = len(args.posonlyargs + args.args) - len(positional)
    return unnamed, positional, [a.arg for a in args.kwonlyargs], defaults


def test_stub_of_the_compiled_module():
    nodes = stub("_C")
    written = {node.name: node for node in nodes if hasattr(node, "name")}
    written |= {node.target.id: node for node in nodes if isinstance(node, ast.AnnAssign)}
    assert written.keys() == {name for name in dir(_C) if not name.startswith("__")}
    for name, node in written.items():
        if isinstance(node, ast.FunctionDef):
            signature = getattr(_C, name).__doc__.splitlines()[0]  # as pybind11 prints it
            assert shape(node) == shape(ast.parse(f"def {signature}: ...").body[0]), name


def test_stub_of_the_build():
    (info,) = (node for node in stub("_build") if isinstance(node, ast.ClassDef))
    names = {node.target.id for node in info.body if isinstance(node, ast.AnnAssign)}
    assert names == _build.INFO.keys()


def documented(cls: type) -> dict[str, str]:
    """The options that a class of erlangen.options names, with what an editor says of each."""
    body = ast.parse(inspect.getsource(cls)).body[0].body
    return {
        field.target.id: text.value.value
        for field, text in zip(body, body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


DOCUMENTED = documented(options.MuonOptions) | documented(options.Options)
POSITIONAL = {"lr", "weight_decay"}


def test_every_option_is_documented_with_its_default():
    assert DOCUMENTED.keys() == erlangen.Options.__annotations__.keys()
    assert DOCUMENTED.keys() == (OPTIONS.keys() - POSITIONAL) | _OF_TORCH.keys()
    for name in OPTIONS.keys() - POSITIONAL:
        default = re.search(r"Default:\s(.*)\.\Z", DOCUMENTED[name]).group(1)
        assert ast.literal_eval(default) == OPTIONS[name], name
    for name in POSITIONAL:
        default = inspect.signature(erlangen.Equivariant.__init__).parameters[name].default
        assert default == OPTIONS[name]


@pytest.mark.parametrize("name", [k for k, v in OPTIONS.items() if isinstance(v, str)])
def test_values_by_name_are_those_allowed(name):
    """The names in the types are those that the checks in C++ allow."""
    seen = str(erlangen.Options.__annotations__[name]).replace("typing.", "")
    typed = set(ast.literal_eval(f"[{re.search(r'Literal.([^]]*)', seen).group(1)}]"))
    group = {**OPTIONS, "rule": "hybrid", "params": [], name: "no such name"}
    with pytest.raises(ValueError, match=f"{name} is .*; allowed: ") as refused:
        _C.check_group(group, 0)
    assert typed == set(str(refused.value).partition("allowed: ")[2].splitlines()[0].split(", "))
