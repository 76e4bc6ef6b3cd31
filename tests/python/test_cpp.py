"""The C++ tests, so that pytest runs everything. That they cannot be built is a failure."""

from xml.etree import ElementTree

from conftest import CMake, cpp_skips, jobs


def test_cpp(cmake_build, pytestconfig, tmp_path):
    results = tmp_path / "results.xml"
    command = ["ctest", "--test-dir", cmake_build, "--no-tests=error", "--output-on-failure"]
    CMake().run(*command, "--parallel", jobs(), "--output-junit", results)
    suite = ElementTree.parse(results).getroot()
    assert int(suite.get("tests")) > 0 and int(suite.get("failures")) == 0
    pytestconfig.stash[cpp_skips] = int(suite.get("skipped"))
