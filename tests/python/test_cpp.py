"""The C++ tests, so that pytest runs everything. That they cannot be built is a failure."""

import os
from xml.etree import ElementTree

from conftest import CMake


def test_cpp(cmake_build, tmp_path, record_property):
    # A directory: one file for each test program.
    cmake = CMake(os.environ | {"GTEST_OUTPUT": f"xml:{tmp_path}/"})
    cmake.run("ctest", "--test-dir", cmake_build, "--no-tests=error", "--output-on-failure")
    programs = [ElementTree.parse(file).getroot() for file in tmp_path.glob("*.xml")]
    assert len(programs) == 3
    for suites in programs:
        assert int(suites.get("tests")) > 0 and int(suites.get("failures")) == 0
    skipped = sum(len(suites.findall(".//skipped")) for suites in programs)
    record_property("skipped_cpp_tests", skipped)
