"""tools/run_python_test.sh: a file of unittest passes only if it ran cases and skipped none.

Argument: run_python_test.sh.
"""
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

RUN = pathlib.Path(sys.argv[1]).resolve()
FILE = """import sys, unittest
class A(unittest.TestCase):
{}
if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
"""
PASS = "    def test_{0}(self): self.assertEqual(1, 1)\n"


class RunPythonTest(unittest.TestCase):
    def run_file(self, text, *arguments):
        """(exit status, (cases, failures) of the report or None, output) of a file of this text."""
        with tempfile.TemporaryDirectory(prefix="a folder ") as folder:
            file = pathlib.Path(folder) / "some_test.py"
            file.write_text(text)
            report = pathlib.Path(folder) / "test.xml"
            done = subprocess.run([RUN, file, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                  env=os.environ | {"NARROWGAUGE_PYTHON": sys.executable, "XML_OUTPUT_FILE": str(report)})
            counts = None
            if report.exists():
                suites = list(xml.etree.ElementTree.parse(report).getroot().iter("testsuite"))
                counts = tuple(sum(int(suite.get(kind)) for suite in suites) for kind in ("tests", "failures"))
            return done.returncode, counts, done.stdout

    def assert_result(self, body, status, cases, failures):
        self.assertEqual(self.run_file(FILE.format(body))[:2], (status, (cases, failures)))

    def test_passes_are_counted(self):
        self.assert_result(PASS.format(1), 0, 1, 0)
        self.assert_result(PASS.format(1) + PASS.format(2), 0, 2, 0)

    def test_failures_and_errors_are_counted(self):
        fails = "    def test_f(self): self.fail()\n    def test_e(self): raise OSError\n"
        self.assert_result(PASS.format(1) + fails, 1, 3, 2)

    def test_no_case_fails(self):
        status, counts, output = self.run_file(FILE.format("    pass"))
        self.assertNotEqual(status, 0)
        self.assertEqual(counts, (1, 1))
        self.assertIn("ran no test case", output)

    def test_file_that_forgets_to_run_its_cases_fails(self):
        status, counts, output = self.run_file("import unittest\nclass A(unittest.TestCase):\n" + PASS.format(1))
        self.assertEqual((status, counts), (1, (1, 1)))
        self.assertIn("is unittest.main() missing", output)

    def test_skipped_cases_fail(self):
        status, counts, output = self.run_file(FILE.format(PASS.format(1) + "    def test_s(self): self.skipTest('no')\n"))
        self.assertEqual((status, counts), (1, (2, 1)))
        self.assertIn("OK (skipped=1); skipped cases and expected failures count as failed", output)

    def test_class_that_skips_itself_fails(self):
        body = "    @classmethod\n    def setUpClass(cls): raise unittest.SkipTest('no')\n" + PASS.format(1)
        status, counts, _ = self.run_file(FILE.format(body))
        self.assertNotEqual(status, 0)
        self.assertEqual(counts, (1, 1))

    def test_expected_failures_fail(self):
        self.assert_result("    @unittest.expectedFailure\n    def test_x(self): self.fail()\n", 1, 1, 1)

    def test_process_that_dies_fails(self):
        status, counts, _ = self.run_file(FILE.format("    def test_x(self): import os; os._exit(7)\n"))
        self.assertEqual((status, counts), (7, (1, 1)))

    def test_script_without_unittest_passes_by_its_status(self):
        script = "import sys\nsys.exit(int(sys.argv[1]))\n"
        self.assertEqual(self.run_file(script, "0")[:2], (0, None))
        self.assertEqual(self.run_file(script, "3")[:2], (3, None))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
