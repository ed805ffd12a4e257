"""What train leaves behind: events for TensorBoard, the page, measured beside planned; and what it says when memory runs out.

    run_end_test.py NARROWGAUGE
"""
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import unittest

from tensorboard.backend.event_processing import event_accumulator

NARROWGAUGE = os.path.abspath(sys.argv.pop(1))
CONFIG = """
job:          {run_dir: %s}
model:        {dim: 32, num_layers: 2, num_heads: 4, num_kv_heads: 2, ffn_dim: 64, max_seq_len: 64, vocab_size: 300}
tokenizer:    {kind: bytes}
data:         {train: [%s], validation_fraction: 0.1, cache_dir: %s}
training:     {steps: 12, seq_len: 16, local_batch_size: 2, num_threads: 1, device: cpu}
validation:   {interval: 6}
generation:   {interval: 6, max_new_tokens: 8}
checkpoint:   {interval: 4}
"""


class RunEnd(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        (self.folder / "text.txt").write_text("the cat sat on the mat and saw the dog run <b>home</b>. " * 200)
        self.config = self.folder / "c.yaml"
        self.run_folder = self.folder / "run"
        self.config.write_text(CONFIG % (self.run_folder, self.folder / "text.txt", self.folder / "cache"))

    def train(self, *overrides, limit_bytes=None):
        def limit():
            resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
        return subprocess.run([NARROWGAUGE, "train", self.config, *overrides], capture_output=True, text=True, timeout=120,
                              preexec_fn=limit if limit_bytes else None)

    def log(self):
        return [json.loads(line) for line in (self.run_folder / "metrics.jsonl").read_text().splitlines()]

    def events(self):
        return event_accumulator.EventAccumulator(str(self.run_folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()

    def assert_events_are_the_log(self):
        events = self.events()
        steps = [line for line in self.log() if "loss" in line]
        for tag, key, scale in (("loss_metrics/global_avg_loss", "loss", 1), ("grad_norm", "grad_norm", 1), ("lr", "lr", 1),
                                ("throughput(tps)", "tokens_per_second", 1), ("time_metrics/end_to_end(s)", "step_seconds", 1),
                                ("memory/max_active(GiB)", "peak_memory_bytes", 2**30), ("n_tokens_seen", "tokens_seen", 1)):
            scalars = events.Scalars(tag)
            self.assertEqual([event.step for event in scalars], [line["step"] for line in steps], tag)
            for event, line in zip(scalars, steps):
                self.assertAlmostEqual(event.value / (line[key] / scale or 1), 1.0 if line[key] else 0.0, places=5, msg=tag)
        validation = [line for line in self.log() if "validation_loss" in line]
        self.assertEqual([event.step for event in events.Scalars("validation_metrics/loss")], [line["step"] for line in validation])

    def test_a_run_leaves_events_a_page_and_its_figures(self):
        result = self.train()
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stderr, r"time: a step took [\d.]+ m?s, [\d,]+ tokens/s; planned [\d.]+ m?s, [+-]\d+ % off\n")
        self.assertRegex(result.stderr, r"memory: [\d.]+ [GM]iB at most; planned [\d.]+ [GM]iB, [+-]\d+ % off\n")
        self.assertIn(f"report {self.run_folder}/report.html\n", result.stderr)
        page = (self.run_folder / "report.html").read_text()
        for text in ("<h1>run</h1>", "held-out", "Samples", "training.seq_len"):
            self.assertIn(text, page)
        self.assert_events_are_the_log()
        self.assertEqual(len(self.events().Tensors("sample")), 2)

    def test_events_of_a_resumed_run_are_its_log(self):
        self.assertEqual(self.train("checkpoint.keep_latest_k=0").returncode, 0)
        self.assertEqual(self.train("checkpoint.load_step=8", "training.steps=14").returncode, 0)
        self.assertEqual(len(list((self.run_folder / "tensorboard").iterdir())), 2)
        self.assertEqual([line["step"] for line in self.log() if "loss" in line], list(range(1, 15)))
        self.assert_events_are_the_log()

    def test_the_run_goes_on_where_no_events_can_be_written(self):
        self.run_folder.mkdir()
        (self.run_folder / "tensorboard").write_text("a file in the way")
        result = self.train()
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stderr.count("no events for TensorBoard: "), 1)

    def test_the_plan_is_told_when_memory_runs_out(self):
        result = self.train("training.local_batch_size=65536", "training.seq_len=64", "checkpoint.enable=false",
                            "data.train=[random_tokens]", "tokenizer.kind=none", "data.validation_fraction=0",
                            "validation.interval=0", "generation.interval=0", "export.enable=false", limit_bytes=5 << 30)
        self.assertEqual(result.returncode, 1, result.stderr)
        for text in ("out of memory: ", "memory of a rank at its fullest", "  activations "):
            self.assertIn(text, result.stderr)


if __name__ == "__main__":
    unittest.main()
