"""What the loop does about steps that are not finite and about loss spikes, in whole runs on one and several ranks.

Argument: narrowgauge (the binary; narrowgauge_torch beside it).
"""
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import unittest

NARROWGAUGE = os.path.abspath(sys.argv[1])

CONFIG = """
job:          {run_dir: %(run)s}
model:        {architecture: llama, dim: 32, num_layers: 1, num_heads: 4, num_kv_heads: 2, ffn_dim: 64, max_seq_len: 64}
tokenizer:    {kind: bytes}
data:         {train: [%(text)s], cache_dir: %(cache)s}
training:     {steps: 20, seq_len: 16, local_batch_size: 2, global_batch_size: 4, num_threads: 1,
               mixed_precision_param: float32, device: cpu}
optimizer:    {lr: 3.0e-3}
lr_scheduler: {decay_type: constant}
checkpoint:   {interval: 1000, keep_latest_k: 0}
export:       {enable: false}
"""
WORDS = "the cat sat on a mat and saw the dog run to the red house by the sea where it slept".split()


class GuardsRun(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        words = random.Random(0)
        text = " ".join(words.choice(WORDS) for _ in range(3000))
        (cls.folder / "text.txt").write_text(text)
        # One stretch of nonsense in the middle, a window or two of the epoch's 180 batches.
        nonsense = "".join(words.choice("#$%&@~^|<>{}[]0123456789") for _ in range(24))
        (cls.folder / "poisoned.txt").write_text(text[:len(text) // 2] + nonsense + text[len(text) // 2:])

    def start(self, name, *overrides, ranks=1, text="text.txt"):
        config = self.folder / f"{name}.yaml"
        config.write_text(CONFIG % dict(run=self.folder / name, text=self.folder / text, cache=self.folder / "cache"))
        launcher = [] if ranks == 1 else ["mpirun", "-q", "--oversubscribe", "--bind-to", "none", "-np", str(ranks)]
        environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                           OMPI_MCA_btl_vader_single_copy_mechanism="none")
        return subprocess.run([*launcher, NARROWGAUGE, "train", config, *overrides], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, env=environment, timeout=120)

    def train(self, *arguments, **options):
        ended = self.start(*arguments, **options)
        self.assertEqual(ended.returncode, 0, ended.stderr)
        return ended

    def lines(self, name):
        return [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]

    def losses(self, name):
        return [(line["step"], line["loss"]) for line in self.lines(name) if "loss" in line]

    def rollbacks(self, name):
        return [line for line in self.lines(name) if "rollback_from" in line]

    def test_steps_that_are_not_finite_are_skipped_and_too_many_end_the_run(self):
        # The first update makes every later forward overflow.
        for ranks in (1, 2):
            with self.subTest(ranks=ranks):
                name = f"overflow {ranks}"
                ended = self.start(name, "optimizer.lr=1.0e+18", "training.max_skipped_steps=3",
                                   "optimizer.weight_decay=0.0", ranks=ranks)
                self.assertEqual(ended.returncode, 1, ended.stderr)
                self.assertIn("the 4. such step in a row (training.max_skipped_steps 3)", ended.stderr)
                self.assertIn("nothing of them was applied", ended.stderr)
                skipped = [line for line in self.lines(name) if "skipped_steps" in line]
                self.assertEqual([line["skipped_steps"] for line in skipped], [1, 2, 3])
                self.assertIn("not applied (3 in a row, 3 in all)", ended.stderr)
                self.assertFalse(any((self.folder / name / "checkpoints").glob("step-*")))

    def test_delayed_scaling_survives_a_skipped_step(self):
        ended = self.start("delayed", "optimizer.lr=1.0e+18", "training.max_skipped_steps=3",
                           "optimizer.weight_decay=0.0", "float8.recipe_name=delayed",
                           "training.mixed_precision_param=bfloat16")
        self.assertIn("the 4. such step in a row", ended.stderr)

    def test_a_spike_takes_the_run_back_behind_its_batches_alike_on_all_ranks(self):
        # Steps of a clean run would be steps of another data order, so what is compared is the run with itself: at
        # two ranks, and stopped in between.
        options = ["training.steps=200", "training.sigma_factor=8", "training.rolling_interval_length=32",
                   "checkpoint.interval=10"]
        ended = self.train("spike", *options, text="poisoned.txt")
        found = self.rollbacks("spike")
        self.assertGreaterEqual(len(found), 1)
        for line in found:
            self.assertGreater(line["z_score"], 8)
            self.assertGreater(line["spike_loss"], 2)
            self.assertEqual(line["step"] % 10, 0)
            self.assertLessEqual(line["rollback_from"] - line["step"], 10)
        self.assertEqual(found[0]["skipped_batches"], found[0]["rollback_from"] - found[0]["step"])
        self.assertIn("back to step", ended.stderr)
        steps = [step for step, _ in self.losses("spike")]
        self.assertEqual(steps, list(range(1, 201)))  # each once, the abandoned ones gone
        late = [loss for step, loss in self.losses("spike") if step > 40]
        self.assertLess(max(late), min(line["spike_loss"] for line in found))

        self.train("spike 2", *options, text="poisoned.txt", ranks=2)
        keys = ("step", "rollback_from", "skipped_batches")
        self.assertEqual([[line[key] for key in keys] for line in self.rollbacks("spike 2")],
                         [[line[key] for key in keys] for line in found])

        # Stopped before the spike and after it, it goes on with the same batches, losses and decisions.
        for stop in (found[0]["step"], found[0]["step"] + 10, 190):
            with self.subTest(stop=stop):
                name = f"spike stopped {stop}"
                self.train(name, *options, f"training.steps={stop}", text="poisoned.txt")
                self.train(name, *options, text="poisoned.txt")
                self.assertEqual(self.losses(name), self.losses("spike"))
                self.assertEqual([line["skipped_batches"] for line in self.rollbacks(name)],
                                 [line["skipped_batches"] for line in found])

    def test_a_run_begun_with_load_step_goes_back_to_its_newest_checkpoint(self):
        options = ["training.steps=200", "training.sigma_factor=8", "training.rolling_interval_length=32",
                   "checkpoint.interval=10"]
        self.train("straight", *options, text="poisoned.txt")
        self.train("begun", *options, "training.steps=30", text="poisoned.txt")
        self.train("begun", *options, "checkpoint.load_step=20", text="poisoned.txt")
        keys = ("step", "rollback_from", "skipped_batches")
        self.assertGreater(self.rollbacks("straight")[0]["step"], 30)
        self.assertEqual([[line[key] for key in keys] for line in self.rollbacks("begun")],
                         [[line[key] for key in keys] for line in self.rollbacks("straight")])
        self.assertEqual(self.losses("begun"), self.losses("straight"))

    def test_spikes_without_end_stop_the_run(self):
        # Every loss that is above the mean at all counts as a spike.
        ended = self.start("endless", "training.steps=200", "training.sigma_factor=0.001",
                           "training.rolling_interval_length=4", "checkpoint.interval=500")
        self.assertEqual(ended.returncode, 1, ended.stderr)
        self.assertIn("the 4. spike on the way from step 0", ended.stderr)
        self.assertIn("raise training.sigma_factor", ended.stderr)

    def test_replicas_are_compared_and_are_equal(self):
        options = ["training.check_weight_hash_interval=2", "training.steps=6"]
        self.train("replicas", *options, "parallelism.data_parallel_replicate_degree=2", ranks=2)
        self.train("mesh", *options, "parallelism.data_parallel_replicate_degree=2", "training.local_batch_size=1",
                   "optimizer.name=AdamW8bit", ranks=4)
        self.train("shards", *options, "float8.recipe_name=delayed", "training.mixed_precision_param=bfloat16", ranks=2)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
