"""Every command of the tutorials as it stands, in order.

Arguments: narrowgauge (the binary; narrowgauge_torch beside it), the pages.
"""
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from page_commands import Workplace, commands  # noqa: E402

NARROWGAUGE, *PAGES = sys.argv[1:]


class Tutorials(unittest.TestCase):
    def run_page(self, name, after=lambda command, runs: None):
        """The folder of its runs; `after` each command is called with both."""
        page = next(page for page in PAGES if pathlib.Path(page).name == name)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        place = Workplace(folder.name, NARROWGAUGE)
        listed = commands(page)
        self.assertGreaterEqual(len(listed), 5)
        for command in listed:
            status, output, errors = place.run(command)
            self.assertEqual(status, 0, f"{command}\n{output}{errors}")
            after(command, place.folder / "runs")
        return place.folder / "runs"

    def test_pretraining(self):
        before = []

        def keep_log(command, runs):
            if command.startswith("mpirun "):
                before.extend((runs / "tutorial_fp8/metrics.jsonl").read_text().splitlines())

        runs = self.run_page("TUTORIAL_PRETRAINING.md", keep_log)
        lines = (runs / "tutorial_fp8/metrics.jsonl").read_text().splitlines()
        self.assertEqual(sum('"grad_norm"' in line for line in lines), 30)
        self.assertEqual(sum('"grad_norm"' in line for line in before), 20)
        self.assertEqual(lines[:len(before)], before)  # with its times: nothing was trained again
        self.assertIn("<svg", (runs / "tutorial_fp8.html").read_text())

    def test_fine_tuning(self):
        runs = self.run_page("TUTORIAL_FINE_TUNING.md")
        self.assertTrue((runs / "tutorial_qat/hf-torchao/config.json").exists())


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
