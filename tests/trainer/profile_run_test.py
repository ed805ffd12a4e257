"""What `train` writes with profiling.enable_profiling, on one and two ranks of the CPU.

Argument: narrowgauge (the binary; narrowgauge_torch beside it).
"""
import json
import pathlib
import re
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from tiny_run import TinyRuns  # noqa: E402

NARROWGAUGE = sys.argv[1]


class ProfileRun(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.runs = TinyRuns(NARROWGAUGE, folder.name)
        cls.runs.train("plain", "training.steps=9")

    def trace(self, name, step, rank=0):
        path = self.runs.folder / name / f"traces/iteration_{step}/rank{rank}_trace.json"
        return json.loads(path.read_text())["traceEvents"]

    def profile(self, name, *overrides, ranks=1):
        self.runs.train(name, "training.steps=9", "profiling.enable_profiling=true",
                        "profiling.save_traces_folder=traces", *overrides, ranks=ranks)

    def test_a_trace_for_each_interval_and_the_same_losses(self):
        self.profile("every4", "profiling.profile_freq=4", "profiling.profiler_warmup=1")
        folders = sorted(path.name for path in (self.runs.folder / "every4/traces").iterdir())
        self.assertEqual(folders, ["iteration_4", "iteration_8"])
        self.assertEqual([line["loss"] for line in self.runs.metrics("every4")],
                         [line["loss"] for line in self.runs.metrics("plain")])

    def test_a_trace_holds_the_steps_asked_for(self):
        self.profile("one", "profiling.profile_freq=8")
        self.profile("two", "profiling.profile_freq=8", "profiling.profiler_active=2", "profiling.profiler_warmup=0")
        products = {name: sum(event.get("name") in ("aten::mm", "aten::addmm") for event in self.trace(name, 8))
                    for name in ("one", "two")}
        self.assertGreater(products["one"], 0)
        self.assertEqual(products["two"], 2 * products["one"])

    def test_operators_add_up_to_the_step(self):
        self.profile("operators", "profiling.profile_freq=8", "profiling.profiler_active=3", "training.global_batch_size=1",
                     "training.mixed_precision_param=bfloat16")
        text = (self.runs.folder / "operators/traces/iteration_8/rank0_operators.txt").read_text()
        first, _, header, *lines = text.splitlines()
        total, phases = re.fullmatch(r"([0-9.]+) ms a step, mean of 3: (.*)", first).groups()
        self.assertEqual({phase.rsplit(" ", 1)[0] for phase in phases.split(", ")},
                         {"forward", "backward", "gradient norm", "optimizer", "the rest"})
        self.assertAlmostEqual(sum(float(phase.rsplit(" ", 1)[1]) for phase in phases.split(", ")), float(total), delta=0.01)
        self.assertEqual(header.split(), ["ms", "%", "calls", "us", "each", "GFLOP/s", "phase", "operator"])
        self.assertAlmostEqual(sum(float(line.split()[0]) for line in lines), float(total), delta=0.001 * len(lines))
        for phase, name in (("forward", "nn::CausalAttention"), ("backward", "nn::CausalAttention"), ("forward", "nn::SwiGLU"),
                            ("backward", "nn::SwiGLU"), ("forward", "aten::mm"), ("backward", "aten::mm"),
                            ("optimizer", "(in no operator)")):
            self.assertTrue(any(f" {phase} " in line and f" {name}" in line for line in lines), f"{phase} {name}\n{text}")

    def test_each_rank_writes_its_own(self):
        self.profile("ranks", "profiling.profile_freq=5", ranks=2)
        for rank in (0, 1):
            self.assertTrue(self.trace("ranks", 5, rank))

    def test_intervals_that_do_not_fit_are_refused(self):
        process = self.runs.start("refused", "profiling.enable_profiling=true", "profiling.profile_freq=3")
        _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 2, errors)
        self.assertIn("profiling.profile_freq", errors)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
