"""Whole runs with each optimizer: learning beside fp32 AdamW, exact resume, other world sizes, parameter groups.

Argument: narrowgauge (the binary; narrowgauge_torch beside it).
"""
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import unittest

NARROWGAUGE = os.path.abspath(sys.argv[1])

# Matrices of 4,096 elements and more have quantized moments; their rows of 32 are shorter than a block, so that
# shards share blocks.
CONFIG = """
job:          {run_dir: %(run)s}
model:        {architecture: llama, dim: 32, num_layers: 2, num_heads: 4, num_kv_heads: 2, ffn_dim: 64, max_seq_len: 64}
tokenizer:    {kind: bytes}
data:         {train: [%(text)s], cache_dir: %(cache)s}
training:     {steps: 40, seq_len: 16, local_batch_size: 1, global_batch_size: 12, num_threads: 1,
               mixed_precision_param: float32, device: cpu}
optimizer:    {lr: 3.0e-3}
lr_scheduler: {decay_type: constant}
checkpoint:   {interval: 1000, keep_latest_k: 0}
export:       {enable: false}
"""
WORDS = "the cat sat on a mat and saw the dog run to the red house by the sea where it slept".split()
BF16 = ["training.dtype=bfloat16", "optimizer.bf16_stochastic_round=true"]
VARIANTS = {
    "AdamW8bit": ["optimizer.name=AdamW8bit"],
    "AdamW4bit": ["optimizer.name=AdamW4bit"],
    "AdamWFp8": ["optimizer.name=AdamWFp8"],
    "Adam": ["optimizer.name=Adam", "optimizer.weight_decay=0.0"],
    "bf16 states": ["optimizer.state_dtype=bfloat16"],
    "bf16 stochastic": BF16,
    "8 bit and bf16 stochastic": ["optimizer.name=AdamW8bit", *BF16],
    "Muon": ["optimizer.name=Muon"],
}


class OptimizerRun(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        words = random.Random(0)
        (cls.folder / "text.txt").write_text(" ".join(words.choice(WORDS) for _ in range(4000)))
        cls.reference = cls.train("reference")

    @classmethod
    def start(cls, name, overrides, ranks=1):
        config = cls.folder / f"{name}.yaml"
        config.write_text(CONFIG % dict(run=cls.folder / name, text=cls.folder / "text.txt",
                                        cache=cls.folder / "cache"))
        launcher = [] if ranks == 1 else ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", str(ranks)]
        environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                           OMPI_MCA_btl_vader_single_copy_mechanism="none")
        return subprocess.run([*launcher, NARROWGAUGE, "train", config, *overrides], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, env=environment, timeout=120)

    @classmethod
    def train(cls, name, *overrides, ranks=1):
        """The losses of the run so far."""
        ended = cls.start(name, overrides, ranks)
        assert ended.returncode == 0, ended.stderr
        lines = (cls.folder / name / "metrics.jsonl").read_text().splitlines()
        return [line["loss"] for line in map(json.loads, lines) if "loss" in line]

    def test_learns_beside_fp32_adamw(self):
        end = sum(self.reference[-5:]) / 5
        self.assertLess(end, 3.2)
        for name, overrides in VARIANTS.items():
            with self.subTest(name):
                losses = self.train("learn " + name, *overrides)
                self.assertEqual(len(losses), 40)
                mean = sum(losses[-5:]) / 5
                if name == "Muon":  # another update rule: it must only be no worse
                    self.assertLess(mean, end + 0.05)
                elif name == "AdamW4bit":  # its second moment is never below 1/16 of the block's largest: slower
                    self.assertLess(mean, end + 0.5)
                else:
                    self.assertAlmostEqual(mean, end, delta=0.05)

    def test_resumed_run_repeats_the_straight_one_bit_for_bit(self):
        for name, overrides in VARIANTS.items():
            for ranks in (1, 3) if name in ("AdamW8bit", "AdamW4bit", "bf16 stochastic", "Muon") else (1,):
                with self.subTest(name, ranks=ranks):
                    run = f"resume {name} {ranks}"
                    straight = self.train(run + " straight", "training.steps=10", *overrides, ranks=ranks)
                    self.train(run, "training.steps=5", *overrides, ranks=ranks)
                    resumed = self.train(run, "training.steps=10", *overrides, ranks=ranks)
                    self.assertEqual(resumed, straight)

    def test_goes_on_at_any_other_world_size(self):
        for name in ("AdamW8bit", "AdamW4bit", "Muon"):
            overrides = VARIANTS[name]
            for before in (1, 2, 3, 4):
                saved = f"world {name} {before}"
                self.train(saved, "training.steps=5", *overrides, ranks=before)
                losses = {}
                for after in (1, 2, 3, 4):
                    run = f"{saved} {after}"
                    shutil.copytree(self.folder / saved, self.folder / run)
                    losses[after] = self.train(run, "training.steps=8", *overrides, ranks=after)[5:]
                for after, actual in losses.items():
                    with self.subTest(name, before=before, after=after):
                        for a, b in zip(actual, losses[before]):
                            self.assertAlmostEqual(a, b, delta=2e-6 * b)

    def test_a_step_in_backward_is_the_step_after_it(self):
        unclipped = "training.max_norm=0.0"
        early = "optimizer.early_step_in_backward=true"
        for name, overrides in (("AdamW", []), ("AdamW8bit", VARIANTS["AdamW8bit"]),
                                ("bf16", BF16), ("recomputed", ["activation_checkpoint.mode=full"]),
                                ("float8", ["float8.recipe_name=tensorwise", "training.mixed_precision_param=bfloat16",
                                            "float8.enable_fsdp_float8_all_gather=true"])):
            for ranks in (1, 2, 3):
                with self.subTest(name, ranks=ranks):
                    run = f"early {name} {ranks}"
                    after = self.train(run + " after", "training.steps=8", unclipped, *overrides, ranks=ranks)
                    before = self.train(run, "training.steps=4", unclipped, early, *overrides, ranks=ranks)
                    self.assertEqual(before, after[:4])
                    resumed = self.train(run, "training.steps=8", unclipped, early, *overrides, ranks=ranks)
                    self.assertEqual(resumed, after)

    def test_a_step_in_backward_with_replicas_and_tied_embeddings(self):
        options = ["training.steps=5", "training.max_norm=0.0", "model.tie_word_embeddings=true",
                   "parallelism.data_parallel_replicate_degree=2", "optimizer.name=AdamW8bit"]
        after = self.train("replicas after", *options, ranks=4)
        self.assertEqual(self.train("replicas", *options, "optimizer.early_step_in_backward=true", ranks=4), after)

    def test_checkpoint_of_another_optimizer_is_refused(self):
        self.train("other", "training.steps=2")
        ended = self.start("other", ["training.steps=4", "optimizer.name=AdamW8bit"])
        self.assertEqual(ended.returncode, 2)
        self.assertIn("holds another run (optimizer.name: AdamW -> AdamW8bit)", ended.stderr)
        ended = self.start("other", ["training.steps=4", "optimizer.name=AdamW8bit",
                                     "checkpoint.allow_changes=[optimizer.name]"])
        self.assertNotEqual(ended.returncode, 0)
        self.assertIn("it is of another model or optimizer", ended.stderr)

    def test_frozen_parameters_stay_and_others_learn(self):
        losses = self.train("frozen", "training.steps=40", "optimizer.parameter_groups=[layers.* frozen]")
        self.assertLess(losses[-1], losses[0] - 0.5)
        slower = self.train("slower", "optimizer.parameter_groups=[\"* lr_scale=0.0\"]")
        first, last = slower[0], slower[-1]
        self.assertAlmostEqual(first, last, delta=0.1)  # other data, the same model

    def test_wrong_keys_are_told(self):
        for expected, *overrides in (
                ("optimizer.parameter_groups: expected a pattern that matches a parameter",
                 "optimizer.parameter_groups=[layer.* frozen]"),
                ("optimizer.parameter_groups: expected lr_scale=NUMBER",
                 "optimizer.parameter_groups=[layers.* scale=2]"),
                ("got all parameters frozen", "optimizer.parameter_groups=[\"* frozen\"]"),
                ("expected training.dtype bfloat16", "optimizer.bf16_stochastic_round=true"),
                ("optimizer.state_dtype: expected float32", "optimizer.name=AdamW8bit",
                 "optimizer.state_dtype=bfloat16"),
                ("training.dtype: expected float32", "optimizer.name=Muon", "training.dtype=bfloat16"),
                ("training.max_norm: expected 0 with optimizer.early_step_in_backward",
                 "optimizer.early_step_in_backward=true")):
            with self.subTest(expected):
                ended = self.start("wrong", overrides)
                self.assertEqual(ended.returncode, 2, ended.stderr)
                self.assertIn(expected, ended.stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
