"""A test dependency that is missing fails the tests; a missing GPU alone skips some."""

import shutil
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("def test():\n    pytest.importorskip('no_such_package')", "1 failed"),
        ("pytest.importorskip('no_such_package')\ndef test():\n    pass", "1 error"),
        ("@pytest.mark.skip(reason='slow')\ndef test():\n    pass", "1 error"),
        ("@pytest.mark.skip(reason='no CUDA device')\ndef test():\n    pass", "1 skipped"),
        ("def test(device):\n    pass", "1 passed"),
    ],
    ids=["in a test", "in a module", "no GPU's", "a GPU's", "on devices"],
)
def test_outcome(text, outcome, tmp_path):
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    (tmp_path / "test_one.py").write_text(f"import pytest\n\n{text}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
    assert outcome in done.stdout.splitlines()[-1], done.stdout
    assert (done.returncode == 0) == (outcome in ("1 passed", "1 skipped"))


@pytest.mark.parametrize("more", [[], ["-n", "1"]], ids=["one process", "two"])
def test_skipped_cpp_tests_are_counted(more, tmp_path):
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    text = "def test(record_property):\n    record_property('skipped_cpp_tests', 3)\n"
    (tmp_path / "test_one.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *more, tmp_path]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
    assert "0 Python tests, 3 C++ tests" in done.stdout, done.stdout
