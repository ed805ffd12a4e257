"""Counts test cases from a Bazel build event file and ends with the exit status of the run.

Usage: count_tests.py BUILD_EVENTS.txt BAZEL_STATUS. Prints 'N passed, N failed' as its only line; a test binary
counts its GoogleTest cases, any other test counts as one. A target that did not build or died counts as failed.
"""
import pathlib
import re
import sys
import xml.etree.ElementTree


def cases(xml_path):
    """(passed, failed) of one test.xml, or None where it lists no case."""
    try:
        suites = xml.etree.ElementTree.parse(xml_path).getroot().iter("testsuite")
    except (OSError, xml.etree.ElementTree.ParseError):
        return None
    total = failed = 0
    for suite in suites:
        total += int(suite.get("tests", 0))
        failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    return (total - failed, failed) if total else None


def main():
    events = pathlib.Path(sys.argv[1]).read_text()
    status = int(sys.argv[2])
    passed = failed = 0
    for block in re.split(r"\n(?=id \{)", events):
        if "test_result {" not in block.split("children", 1)[0] or 'name: "test.xml"' not in block:
            continue
        ok = re.search(r"\n  status: PASSED", block) is not None
        path = re.search(r'name: "test.xml"\s+uri: "file://([^"]+)"', block)
        counted = cases(path.group(1)) if path else None
        counted = counted or ((1, 0) if ok else (0, 1))
        passed += counted[0]
        failed += counted[1] if ok else max(counted[1], 1)
    if status and not failed:
        failed = 1
    print(f"{passed} passed, {failed} failed")
    sys.exit(status or (1 if failed or not passed else 0))


if __name__ == "__main__":
    main()
