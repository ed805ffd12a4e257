"""tools/count_tests.py over event files as Bazel writes them: what counts as passed, what as failed.

Argument: count_tests.py.
"""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

COUNT = pathlib.Path(sys.argv[1]).resolve()
# As gtest_main, and as Bazel itself for a script.
GTEST = """<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="5" failures="{failures}" disabled="{disabled}" errors="0" time="0.1" name="AllTests">
  <testsuite name="A" tests="3" failures="{failures}" disabled="0" skipped="{skipped}" errors="0"/>
  <testsuite name="B" tests="2" failures="0" disabled="{disabled}" skipped="0" errors="0"/>
</testsuites>"""
NO_CASE = '<testsuites tests="0" failures="0" disabled="0" errors="0" name="AllTests">\n</testsuites>'
SCRIPT = '<testsuites><testsuite name="s" tests="1" failures="0" errors="{errors}"><testcase/></testsuite></testsuites>'


def gtest(failures=0, skipped=0, disabled=0):
    return GTEST.format(failures=failures, skipped=skipped, disabled=disabled)


class CountTests(unittest.TestCase):
    def setUp(self):
        # A checkout may lie in a folder whose name needs quoting in a URI.
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "my 100% café"
        self.folder.mkdir()
        self.events = []

    def add_target(self, name, built=True):
        label = f"//tests:{name}"
        self.events.append({"id": {"targetCompleted": {"label": label}},
                            "completed": {"success": True} if built else {"failureDetail": {"message": "no"}}})
        return label

    def add_test(self, name, xml, status="PASSED"):
        label = self.add_target(name)
        path = self.folder / f"{name}.xml"
        if xml is not None:
            path.write_text(xml)
        self.events.append({
            "id": {"testResult": {"label": label, "run": 1, "shard": 1, "attempt": 1}},
            "testResult": {"status": status, "testActionOutput": [
                {"name": "test.log", "uri": path.with_suffix(".log").as_uri()},
                {"name": "test.xml", "uri": path.as_uri()}]}})

    def assert_counts(self, passed, failed, exit_status, bazel_status=0, failed_checks=None, suffix=""):
        file = self.folder / "events.json"
        file.write_text("".join(json.dumps(event) + "\n" for event in self.events) + suffix)
        arguments = [str(bazel_status)] + ([] if failed_checks is None else [str(failed_checks)])
        done = subprocess.run([sys.executable, COUNT, file, *arguments], capture_output=True, text=True)
        self.assertEqual(done.stdout, f"{passed} passed, {failed} failed\n", done.stderr)
        self.assertEqual(done.returncode, exit_status)
        return done.stderr

    def test_cases_are_counted(self):
        self.add_test("a", gtest())
        self.add_test("b", SCRIPT.format(errors=0))
        self.assertEqual(self.assert_counts(6, 0, 0), "")

    def test_failures_keep_the_status_of_bazel(self):
        self.add_test("a", gtest(failures=2), "FAILED")
        self.add_test("b", SCRIPT.format(errors=1), "FAILED")
        self.add_test("c", gtest())
        self.assert_counts(8, 3, 3, bazel_status=3)

    def test_skipped_and_disabled_cases_fail(self):
        self.add_test("a", gtest(skipped=1))
        self.assert_counts(4, 1, 1)
        self.add_test("b", gtest(disabled=2))
        self.assert_counts(7, 3, 1)

    def test_binary_without_a_case_fails(self):
        self.add_test("a", gtest())
        self.add_test("b", NO_CASE)
        self.assertIn("expected at least one test case", self.assert_counts(5, 1, 1))

    def test_binary_that_dies_after_its_last_case_fails(self):
        self.add_test("a", gtest(), "FAILED")
        self.assert_counts(5, 1, 3, bazel_status=3)

    def test_lost_or_torn_report_counts_as_one_case(self):
        self.add_test("a", None)
        self.add_test("b", gtest()[:200])
        self.add_test("c", gtest()[:200], "TIMEOUT")
        errors = self.assert_counts(2, 1, 3, bazel_status=3)
        self.assertEqual(errors.count("cannot read its test.xml"), 3)

    def test_targets_that_did_not_build_fail(self):
        self.add_test("a", gtest())
        self.add_target("library")
        self.add_target("b", built=False)
        self.add_target("c", built=False)
        self.assert_counts(5, 2, 1, bazel_status=1)

    def test_run_without_a_test_fails(self):
        self.assert_counts(0, 1, 1)
        self.assert_counts(0, 1, 2, bazel_status=2)

    def test_status_of_bazel_without_a_failed_case_counts(self):
        self.add_test("a", gtest())
        self.assert_counts(5, 1, 8, bazel_status=8)

    def test_failed_checks_outside_of_bazel_count(self):
        self.add_test("a", gtest())
        self.assert_counts(5, 0, 0, failed_checks=0)
        self.assert_counts(5, 1, 1, failed_checks=1)

    def test_event_file_cut_short_fails(self):
        self.add_test("a", gtest())
        self.assert_counts(0, 1, 1, suffix='{"id": {"testRes')


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
