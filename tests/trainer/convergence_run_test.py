"""`narrowgauge bench convergence` on a tiny model: runs, the table, going on, what it refuses.

Argument: narrowgauge (the binary; narrowgauge_torch beside it).
"""
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from tiny_run import CONVERSION_CONFIG, TinyRuns  # noqa: E402

NARROWGAUGE = sys.argv[1]
TWO = ["--variant", "bf16", "--variant", "tensorwise", "--seeds", "2", "--tolerance", "50"]


class ConvergenceRun(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.runs = TinyRuns(NARROWGAUGE, folder.name, config=CONVERSION_CONFIG)
        self.config = self.runs.config("base")
        self.output = self.runs.folder / "out"

    def start(self, *arguments):
        return subprocess.Popen([self.runs.program, "bench", "convergence", *map(str, arguments), "--config", self.config,
                                 "--output", self.output], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def compare(self, *arguments):
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=240)
        return process.returncode, output, errors

    def test_table_and_plots_and_nothing_twice(self):
        status, output, errors = self.compare("float8", *TWO, "--jobs", "2")
        self.assertEqual(status, 0, errors)
        self.assertEqual(sorted(path.name for path in self.output.iterdir()),
                         ["bf16-seed1", "bf16-seed2", "report.html", "table.json", "tensorwise-seed1", "tensorwise-seed2"])
        table = json.loads((self.output / "table.json").read_text())
        self.assertEqual((table["family"], table["reference"], table["steps"]), ("float8", "bf16", 12))
        for row in table["variants"]:
            lasts = []
            for seed in (1, 2):
                lines = (self.output / f"{row['variant']}-seed{seed}/metrics.jsonl").read_text().splitlines()
                lasts += [line["validation_loss"] for line in map(json.loads, lines)
                          if "validation_loss" in line and line["step"] == 12]
            self.assertEqual(row["losses"], lasts)
            self.assertIn(f"| {row['variant']} | {lasts[0]:.4f} {lasts[1]:.4f} | {row['mean']:.4f} |", output)
        self.assertNotEqual(table["variants"][0]["losses"][0], table["variants"][0]["losses"][1])
        self.assertIn("validation loss above bf16", (self.output / "report.html").read_text())
        logs = {path: path.stat().st_mtime_ns for path in self.output.glob("*/log.txt")}
        status, again, errors = self.compare("float8", *TWO)
        self.assertEqual((status, again), (0, output), errors)
        self.assertIn("0 of 4 runs to train", errors)
        self.assertEqual(logs, {path: path.stat().st_mtime_ns for path in self.output.glob("*/log.txt")})
        status, _, errors = self.compare("float8", *TWO, "optimizer.lr=1.0e-3")
        self.assertEqual(status, 1, errors)
        self.assertIn('holds a run of other settings (now "lr: 0.001"); choose another --output', errors)
        status, output, errors = self.compare("float8", *TWO[2:4], "--seeds", "3", "--table-only")
        self.assertEqual(status, 0, errors)
        self.assertEqual(output.count("\n"), 3)

    def test_beyond_the_tolerance(self):
        status, _, errors = self.compare("float8", *TWO[:4], "--seeds", "1", "--tolerance", "0")
        table = json.loads((self.output / "table.json").read_text())
        is_worse = table["variants"][1]["difference_percent"] > 0
        self.assertEqual(status, int(is_worse), errors)
        self.assertEqual("tensorwise is more than 0 % above bf16" in errors, is_worse)

    def test_a_signal_saves_what_runs_and_it_goes_on(self):
        long = ["float8", "--variant", "bf16", "--seeds", "1", "training.steps=4000", "validation.interval=4000",
                "checkpoint.interval=4000"]
        process = self.start(*long)
        while not list(self.output.glob("bf16-seed1/metrics.jsonl")):
            self.assertIsNone(process.poll())
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 75, errors)
        self.assertIn("stopped by SIGTERM; start again to go on", errors)
        self.assertTrue(list(self.output.glob("bf16-seed1/checkpoints/step-*")))

    def test_a_run_that_fails_tells_why(self):
        status, _, errors = self.compare("float8", *TWO, "data.train=[nowhere/*.txt]")
        self.assertEqual(status, 1, errors)
        self.assertIn("4 runs failed, the first: bf16 seed 1: exit code", errors)
        self.assertIn("nowhere", errors)

    def test_mistakes_cost_no_step(self):
        for arguments, text in ((["fp8"], "unknown family fp8; there are float8, sparsity, qat, optimizers"),
                                (["float8", "--variant", "tensorwize"], "did you mean tensorwise?"),
                                (["float8", "validation.interval=0"], "validation.interval: expected a number of steps"),
                                ([], "expected FAMILY")):
            status, _, errors = self.compare(*arguments)
            self.assertEqual(status, 2, errors)
            self.assertIn(text, errors)
        self.assertFalse(self.output.exists())


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
