"""The C++ tests, so that pytest runs everything. That they cannot be built is a failure."""

import os
from xml.etree import ElementTree

from conftest import CMake, cpp_skips


def test_cpp(cmake_build, pytestconfig, tmp_path):
    results = tmp_path / "results.xml"
    cmake = CMake(os.environ | {"GTEST_OUTPUT": f"xml:{results}"})
    cmake.run("ctest", "--test-dir", cmake_build, "--no-tests=error", "--output-on-failure")
    suites = ElementTree.parse(results).getroot()
    assert int(suites.get("tests")) > 0 and int(suites.get("failures")) == 0
    pytestconfig.stash[cpp_skips] = len(suites.findall(".//skipped"))
