"""`narrowgauge bench` on a tiny model: modes in turn, the table, its JSON, comparing with an earlier one.

Argument: narrowgauge (the binary; narrowgauge_torch beside it).
"""
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from tiny_run import TinyRuns  # noqa: E402

NARROWGAUGE = sys.argv[1]
SHORT = ["--steps", "2", "--warmup", "1"]


class BenchRun(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.runs = TinyRuns(NARROWGAUGE, folder.name)
        self.config = self.runs.config("bench")
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()

    def start(self, *arguments):
        return subprocess.Popen([self.runs.program, "bench", self.config, *map(str, arguments)], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, env=dict(os.environ, TMPDIR=str(self.temporary)))

    def bench(self, *arguments):
        """Exit code, standard output and standard error. Nothing is left behind, whatever the end."""
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=240)
        self.assertEqual(list(self.temporary.iterdir()), [])
        self.assertFalse((self.folder / "bench").exists())
        return process.returncode, output, errors

    def test_modes_in_turn(self):
        path = self.folder / "now.json"
        status, output, errors = self.bench(*SHORT, "--rounds", "2", "--modes", "bf16,float8.tensorwise", "--json", path)
        self.assertEqual(status, 0, errors)
        self.assertEqual([line.split()[:3] for line in errors.splitlines()],
                         [["round", f"{number}/2", mode] for number in (1, 2) for mode in ("bf16", "float8.tensorwise")])
        self.assertIn("llama of dim 32, 2 layers, 4 / 2 heads, ffn_dim 64, vocabulary 256; 24 x 16 tokens a step\n", output)
        self.assertIn("1 thread; 2 rounds of 2 steps after 1\n", output)
        result = json.loads(path.read_text())
        self.assertEqual([mode["mode"] for mode in result["modes"]], ["bf16", "float8.tensorwise"])
        self.assertEqual(result["modes"][0]["ratio"], 1)
        for mode in result["modes"]:
            self.assertIn("\n" + mode["mode"] + " ", output)
            self.assertEqual([len(run["step_seconds"]) for run in mode["rounds"]], [2, 2])
            steps = [seconds for run in mode["rounds"] for seconds in run["step_seconds"]]
            self.assertTrue(min(steps) <= mode["step_seconds"] <= max(steps))
            self.assertAlmostEqual(mode["tokens_per_second"] * mode["step_seconds"], 24 * 16)
            self.assertGreater(mode["peak_memory_bytes"], 2**20)
            for run in mode["rounds"]:
                self.assertGreater(run["first_step_seconds"], run["step_seconds"][0])

    def test_the_default_is_the_configured_mode_beside_bf16(self):
        status, output, errors = self.bench(*SHORT, "--rounds", "1", "qat.scheme=8da4w",
                                            "training.mixed_precision_param=bfloat16")
        self.assertEqual(status, 0, errors)
        self.assertEqual([line.split()[0] for line in output.splitlines()[3:]], ["bf16", "qat.8da4w"])

    def test_compare_with_an_earlier_run(self):
        path = self.folder / "then.json"
        self.assertEqual(self.bench(*SHORT, "--rounds", "1", "--modes", "fp32", "--json", path)[0], 0)
        then = json.loads(path.read_text())
        same = [*SHORT, "--rounds", "1", "--modes", "fp32", "--compare", path]
        then["modes"][0]["tokens_per_second"] /= 1000
        path.write_text(json.dumps(then))
        status, output, errors = self.bench(*same, "--fail-below", "0.9")
        self.assertEqual(status, 0, errors)
        self.assertIn("beside " + then["subject"]["date"], output)
        then["modes"][0]["tokens_per_second"] *= 1e6
        then["subject"]["threads"] = 64
        path.write_text(json.dumps(then))
        status, output, errors = self.bench(*same, "--fail-below", "0.9")
        self.assertEqual(status, 1, errors)
        self.assertIn("fp32 is slower than 0.9 times the speed in", errors)
        self.assertIn("the number of threads was 64, is 1", errors)
        self.assertEqual(self.bench(*same)[0], 0)

    def test_profile_of_each_mode(self):
        status, output, errors = self.bench("--profile", *SHORT, "--modes", "bf16,float8.rowwise")
        self.assertEqual(status, 0, errors)
        self.assertRegex(output, r"^bf16: [0-9.]+ ms a step, mean of 2: ")
        self.assertRegex(output, r"\nfloat8.rowwise: [0-9.]+ ms a step, mean of 2: ")
        before, after = output.split("\nfloat8.rowwise: ")
        self.assertNotIn("float8::scaled_mm", before)
        for name in (" forward       float8::scaled_mm\n", " backward      float8::cast\n", " nn::AddRmsNorm\n"):
            self.assertIn(name, after)
        status, output, errors = self.bench("--profile", *SHORT)
        self.assertEqual((status, output.split()[0]), (0, "fp32:"), errors)

    def test_mistakes_cost_no_step(self):
        for arguments, text in ((["--modes", "fp8"], "--modes: expected some of bf16"),
                                (["--modes", "bf16,float8.tensorwize"], "mode float8.tensorwize: "),
                                (["--steps", "0"], "--steps: expected an integer of at least 1"),
                                (["--fail-below", "0.9"], "--fail-below: expected --compare beside it"),
                                (["--profile", "--json", "x"], "--json: expected nothing beside --profile"),
                                (["training.stepz=1"], "did you mean training.steps?")):
            status, _, errors = self.bench(*arguments)
            self.assertEqual(status, 2, errors)
            self.assertIn(text, errors)
            self.assertNotIn("round", errors)
        (self.folder / "other.json").write_text("{}")
        for name, text in (("other.json", "expected what `narrowgauge bench --json` wrote"), ("none.json", "none.json")):
            status, _, errors = self.bench("--compare", self.folder / name)
            self.assertEqual(status, 1, errors)
            self.assertIn(text, errors)

    def test_a_run_that_fails_tells_why(self):
        status, _, errors = self.bench(*SHORT, "data.train=[nowhere/*.txt]")
        self.assertEqual(status, 1, errors)
        self.assertIn("mode bf16: train ended with exit code", errors)
        self.assertIn("nowhere", errors)

    def test_a_signal_ends_it_and_the_run_under_way(self):
        process = self.start("--steps", "100000", "--modes", "fp32")
        while not list(self.temporary.glob("*/run/metrics.jsonl")):
            self.assertIsNone(process.poll(), process.stderr)
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1, errors)
        self.assertIn("stopped by SIGINT", errors)
        self.assertEqual(list(self.temporary.iterdir()), [])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
