"""The C++ tests, so that pytest runs everything. That they cannot be built is a failure."""

import re

from conftest import CMake, cpp_skips, jobs


def test_cpp(cmake_build, pytestconfig):
    out = CMake().run(
        "ctest", "--test-dir", cmake_build, "--output-on-failure", "--parallel", jobs(),
        "--no-tests=error",
    )  # fmt: skip
    assert re.search(r"100% tests passed, 0 tests failed out of \d+", out), out[-4000:]
    pytestconfig.stash[cpp_skips] = len(re.findall(r"\*\*\*Skipped", out))
