"""Runs of narrowgauge train with 2:4 sparsity: learns, resumes bit for bit within a schedule, shards, ends with zeros.

Argument: narrowgauge (the binary; narrowgauge_torch beside it).
"""
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import torch
from safetensors.torch import load_file

from tiny_run import CONVERSION_CONFIG, TinyRuns

NARROWGAUGE = os.path.abspath(sys.argv[1])

CONFIG = CONVERSION_CONFIG + "sparsity: {kind: semi_structured}\n"


class TrainSparse(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.runs = TinyRuns(NARROWGAUGE, self.folder, config=CONFIG)

    def train(self, name, *overrides, ranks=1):
        """Returns exit code, standard error and the run's folder."""
        return self.runs.run(name, "checkpoint.interval=2", "export.enable=true", *overrides, ranks=ranks)

    def losses(self, name, *overrides, ranks=1):
        status, errors, _ = self.train(name, *overrides, ranks=ranks)
        self.assertEqual(status, 0, errors)
        return [(line["step"], line["loss"]) for line in self.runs.metrics(name)]

    def exported(self, name):
        return load_file(self.folder / name / "hf/model.safetensors")

    def assert_sparse(self, weights, at_most):
        """Every linear of the blocks has two of each four along both dims at most, the embedding all."""
        count = 0
        for name, weight in weights.items():
            if "_proj" not in name:
                continue
            count += 1
            for matrix in (weight, weight.T):
                kept = (matrix.reshape(-1, 4) != 0).sum(1).max().item()
                self.assertLessEqual(kept, at_most, name)
        self.assertEqual(count, 14)
        self.assertGreater((weights["model.embed_tokens.weight"] != 0).float().mean(), 0.9)

    def test_learns_and_ends_with_two_of_four_both_ways(self):
        dense = self.losses("dense", "sparsity.kind=none", "training.steps=30")
        sparse = self.losses("sparse", "training.steps=30")
        self.assertNotEqual(sparse, dense)
        self.assertLess(sparse[-1][1], 0.8 * sparse[0][1])
        self.assertLess(abs(sparse[-1][1] / dense[-1][1] - 1), 0.15)
        self.assert_sparse(self.exported("sparse"), 2)
        with self.assertRaises(AssertionError):
            self.assert_sparse(self.exported("dense"), 2)

    def test_resumes_bit_for_bit_within_a_schedule(self):
        schedule = ["sparsity.start_step=3", "sparsity.end_step=9", "sparsity.mask_interval=4"]
        straight = self.losses("straight", *schedule)
        for step in (2, 4, 6, 8, 10):  # before, between two refreshes, after
            with self.subTest(step):
                self.losses(f"again-{step}", *schedule)
                self.assertEqual(self.losses(f"again-{step}", *schedule, f"checkpoint.load_step={step}"), straight)

    def test_schedule_is_dense_outside(self):
        dense = self.losses("dense", "sparsity.kind=none")
        late = self.losses("late", "sparsity.start_step=5")
        self.assertEqual(late[:4], dense[:4])
        self.assertNotEqual(late[4], dense[4])
        self.losses("early", "sparsity.end_step=6")
        with self.assertRaises(AssertionError):
            self.assert_sparse(self.exported("early"), 2)

    def at_step(self, name, step):
        output = self.folder / f"{name}-{step}"
        done = subprocess.run([NARROWGAUGE, "export", self.folder / name, "--step", str(step), "--output", output,
                               "--logits-tokens", "0"], capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        return load_file(output / "model.safetensors")

    def test_the_dense_phase_begins_with_what_the_sparse_one_computed(self):
        constant = ["lr_scheduler.decay_type=constant", "lr_scheduler.warmup_steps=2"]
        self.losses("switched", "sparsity.end_step=6", *constant)
        self.losses("ended", "training.steps=6", *constant)
        at_switch, ended = self.at_step("switched", 6), self.exported("ended")
        self.assert_sparse(at_switch, 2)
        for name, weight in ended.items():
            self.assertTrue(torch.equal(at_switch[name], weight), name)
        with self.assertRaises(AssertionError):
            self.assert_sparse(self.at_step("switched", 8), 2)
        # A resume from the switch itself goes on dense.
        straight = self.losses("again", "sparsity.end_step=6", *constant)
        self.assertEqual(self.losses("again", "sparsity.end_step=6", *constant, "checkpoint.load_step=6"), straight)

    def test_shards_as_it_replicates(self):
        for overrides in ([], ["sparsity.mask_interval=4"], ["sparsity.end_step=6"], ["sparsity.gradient=masked"],
                          ["sparsity.sr_ste_decay=2.0e-4"], ["sparsity.kind=semi_structured_activation"]):
            with self.subTest(overrides):
                # Without clipping, whose norm is summed shard by shard: nothing else depends on the mesh.
                name = "-".join(part.split("=")[-1] for part in overrides)
                overrides = [*overrides, "training.max_norm=0"]
                whole = self.losses(f"whole{name}", *overrides, "parallelism.data_parallel_replicate_degree=2",
                                    ranks=2)
                sharded = self.losses(f"sharded{name}", *overrides, ranks=2)
                self.assertEqual(sharded, whole)
                for key, value in self.exported(f"whole{name}").items():
                    self.assertTrue(torch.equal(value, self.exported(f"sharded{name}")[key]), key)

    def test_activation_checkpointing_changes_no_loss(self):
        for mode in ("full", "selective"):
            with self.subTest(mode):
                kept = self.losses(f"kept-{mode}")
                self.assertEqual(self.losses(mode, f"activation_checkpoint.mode={mode}"), kept)

    def test_goes_with_float8(self):
        for recipe in ("tensorwise", "delayed", "rowwise"):
            with self.subTest(recipe):
                float8 = [f"float8.recipe_name={recipe}"]
                schedule = ["sparsity.start_step=3", "sparsity.end_step=9", "sparsity.mask_interval=4"]
                sparse = self.losses(f"sparse-{recipe}", *float8)
                self.assert_sparse(self.exported(f"sparse-{recipe}"), 2)
                self.assertNotEqual(sparse, self.losses(f"dense-{recipe}", *float8, "sparsity.kind=none"))
                self.assertNotEqual(sparse, self.losses("bf16"))
                straight = self.losses(f"straight-{recipe}", *float8, *schedule)
                for step in (4, 6, 10):
                    self.losses(f"again-{recipe}-{step}", *float8, *schedule)
                    self.assertEqual(self.losses(f"again-{recipe}-{step}", *float8, *schedule,
                                                 f"checkpoint.load_step={step}"), straight)
        status, errors, _ = self.train("told", "float8.recipe_name=tensorwise")
        self.assertEqual(status, 0, errors)
        self.assertIn("sparsity with float8: 8 of them cast the masked weight", errors)

    def test_shards_as_it_replicates_in_float8(self):
        for recipe in ("tensorwise", "rowwise"):
            with self.subTest(recipe):
                overrides = [f"float8.recipe_name={recipe}", "training.max_norm=0", "sparsity.mask_interval=4"]
                whole = self.losses(f"whole-{recipe}", *overrides, "parallelism.data_parallel_replicate_degree=2", ranks=2)
                self.assertEqual(self.losses(f"sharded-{recipe}", *overrides, ranks=2), whole)
                for key, value in self.exported(f"whole-{recipe}").items():
                    self.assertTrue(torch.equal(value, self.exported(f"sharded-{recipe}")[key]), key)

    def test_says_what_stays_dense(self):
        status, errors, _ = self.train("run", "model.ffn_dim=60", "sparsity.filter_fqns=[lm_head,layers.0.self_attn]")
        self.assertEqual(status, 0, errors)
        self.assertIn("sparsity: layers.0.self_attn.qkv_proj stays dense (filter_fqns has layers.0.self_attn)", errors)
        self.assertIn("layers.1.mlp.down_proj stays dense (out_features is no multiple of 4, or in_features none of 8)",
                      errors)
        self.assertIn("sparsity semi_structured: 4 linears", errors)

    def test_mistakes_are_told(self):
        for overrides, expected in [
                (["sparsity.kind=2:4"], "one of none, semi_structured"),
                (["float8.recipe_name=rowwise", "sparsity.kind=semi_structured_activation"],
                 "expected none, semi_structured or pruned with float8.recipe_name rowwise"),
                (["float8.recipe_name=rowwise", "float8.enable_fsdp_float8_all_gather=true"],
                 "expected false with sparsity.kind semi_structured, whose masks are chosen between gather and cast"),
                (["sparsity.start_step=5", "sparsity.end_step=3"], "at least sparsity.start_step 5"),
                (["sparsity.gradient=masked", "sparsity.sr_ste_decay=0.1"], "expected 0 with sparsity.gradient masked"),
                (["sparsity.mask_interval=0"], "sparsity.mask_interval")]:
            with self.subTest(overrides):
                status, errors, _ = self.train("bad", *overrides)
                self.assertEqual(status, 2, errors)
                self.assertIn(expected, errors)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
