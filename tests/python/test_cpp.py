"""The C++ tests, so that pytest runs everything. That they cannot be built is a failure."""

import os
from xml.etree import ElementTree

from conftest import CMake, cpp_skips


def test_cpp(cmake_build, pytestconfig, tmp_path):
    # A directory: one file for each test program.
    cmake = CMake(os.environ | {"GTEST_OUTPUT": f"xml:{tmp_path}/"})
    cmake.run("ctest", "--test-dir", cmake_build, "--no-tests=error", "--output-on-failure")
    programs = [ElementTree.parse(file).getroot() for file in tmp_path.glob("*.xml")]
    assert len(programs) == 2
    for suites in programs:
        assert int(suites.get("tests")) > 0 and int(suites.get("failures")) == 0
    pytestconfig.stash[cpp_skips] = sum(len(suites.findall(".//skipped")) for suites in programs)
