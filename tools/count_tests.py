"""Counts test cases from a Bazel build event file and ends with the exit status of the run.

Usage: count_tests.py BUILD_EVENTS.json BAZEL_STATUS [FAILED_CHECKS]. Prints 'N passed, N failed' as its only line on
stdout. A test counts the cases of its test.xml (GoogleTest's, or run_python_test.sh's); a script counts as one. Skipped
and disabled cases, a GoogleTest binary without a case, a target that did not build or died, and each of FAILED_CHECKS
(made outside of Bazel) count as failed.
"""
import json
import pathlib
import sys
import urllib.parse
import xml.etree.ElementTree

# Cases that did not run are no passes: a missing backend is a failure.
FAILING = ("failures", "errors", "skipped", "disabled")


def cases(xml_path):
    """(passed, failed) of one test.xml. Throws OSError or ParseError where it is missing or torn."""
    total = failed = 0
    for suite in xml.etree.ElementTree.parse(xml_path).getroot().iter("testsuite"):
        total += int(suite.get("tests", 0))
        failed += sum(int(suite.get(kind, 0)) for kind in FAILING)
    if total == 0:
        print(f"{xml_path}: expected at least one test case, got none", file=sys.stderr)
        return 0, max(failed, 1)
    return max(total - failed, 0), failed


def count_result(label, result):
    """(passed, failed) of one attempt at one test target."""
    passed = result.get("status") == "PASSED"
    uris = [output["uri"] for output in result.get("testActionOutput", ()) if output.get("name") == "test.xml"]
    try:
        path = urllib.parse.unquote(urllib.parse.urlsplit(uris[0]).path)
        good, bad = cases(path)
    except (IndexError, OSError, xml.etree.ElementTree.ParseError) as error:
        print(f"{label}: cannot read its test.xml ({error}); counted as one case", file=sys.stderr)
        good, bad = (1, 0) if passed else (0, 1)
    # A binary that dies after its last case has a clean report.
    return (good, bad) if passed else (good, max(bad, 1))


def count(events):
    """(passed, failed) of a whole run. Events: objects of Bazel's build event protocol."""
    passed = failed = 0
    tested, broken = set(), set()
    for event in events:
        kind, identity = next(iter(event["id"].items()))
        if kind == "testResult":
            tested.add(identity["label"])
            good, bad = count_result(identity["label"], event.get("testResult", {}))
            passed += good
            failed += bad
        elif kind == "targetCompleted" and not event.get("completed", {}).get("success"):
            broken.add(identity["label"])
    return passed, failed + len(broken - tested)


def main():
    text = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")
    status = int(sys.argv[2])
    try:
        passed, failed = count([json.loads(line) for line in text.splitlines()])
    except json.JSONDecodeError as error:  # Bazel was killed while it wrote
        print(f"{sys.argv[1]}: {error}", file=sys.stderr)
        passed, failed = 0, 1
    if (status or not passed) and not failed:
        failed = 1
    failed += int(sys.argv[3]) if len(sys.argv) > 3 else 0
    print(f"{passed} passed, {failed} failed")
    sys.exit(status or (1 if failed else 0))


if __name__ == "__main__":
    main()
