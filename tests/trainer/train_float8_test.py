"""Runs of narrowgauge train with float8: every recipe learns, resumes bit for bit, shards, reports its health, exports.

Argument: narrowgauge (the binary; narrowgauge_torch beside it).
"""
import math
import os
import pathlib
import sys
import tempfile
import unittest

import torch
from safetensors.torch import load_file

from tiny_run import CONVERSION_CONFIG, TinyRuns

NARROWGAUGE = os.path.abspath(sys.argv[1])
RECIPES = ["tensorwise", "rowwise", "rowwise_with_gw_hp", "delayed", "blockwise", "mxfp8"]

CONFIG = CONVERSION_CONFIG + "float8: {health_interval: 4}\n"


class TrainFloat8(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.runs = TinyRuns(NARROWGAUGE, self.folder, config=CONFIG)

    def train(self, name, recipe, *overrides, ranks=1):
        """Returns exit code, standard error and the run's folder."""
        return self.runs.run(name, f"float8.recipe_name={recipe}", *overrides, ranks=ranks)

    def losses(self, name, recipe, *overrides, ranks=1):
        status, errors, _ = self.train(name, recipe, *overrides, ranks=ranks)
        self.assertEqual(status, 0, errors)
        return [(line["step"], line["loss"], line["grad_norm"]) for line in self.runs.metrics(name)]

    def test_every_recipe_learns_and_resumes_bit_for_bit(self):
        reference = self.losses("bf16", "none", "training.steps=30")
        for recipe in RECIPES:
            with self.subTest(recipe):
                straight = self.losses(recipe, recipe, "training.steps=30")
                self.assertNotEqual(straight, reference)
                self.assertLess(abs(straight[-1][1] / reference[-1][1] - 1), 0.05)
                self.losses(f"{recipe}-again", recipe, "training.steps=30")
                resumed = self.losses(f"{recipe}-again", recipe, "training.steps=30", "checkpoint.load_step=12")
                self.assertEqual(resumed, straight)

    def test_recipe_may_change_on_resume(self):
        self.losses("run", "tensorwise", "training.steps=6")
        status, errors, _ = self.train("run", "delayed")
        self.assertEqual(status, 0, errors)
        self.assertIn("float8.recipe_name: tensorwise -> delayed", errors)
        self.assertEqual(len(self.runs.metrics("run")), 12)

    def test_float8_all_gather_changes_no_loss(self):
        for recipe in ("tensorwise", "rowwise", "delayed"):
            with self.subTest(recipe):
                # Without clipping, whose norm is summed shard by shard: nothing else depends on the mesh.
                overrides = ["float8.enable_fsdp_float8_all_gather=true", "training.max_norm=0"]
                replicated = self.losses(f"{recipe}-whole", recipe, *overrides,
                                         "parallelism.data_parallel_replicate_degree=2", ranks=2)
                sharded = self.losses(f"{recipe}-sharded", recipe, *overrides, ranks=2)
                self.assertEqual([loss for _, loss, _ in sharded], [loss for _, loss, _ in replicated])

    def test_activation_checkpointing_changes_no_loss(self):
        for recipe in ("rowwise", "delayed"):
            for mode in ("full", "selective"):
                with self.subTest(recipe=recipe, mode=mode):
                    overrides = ["float8.enable_fsdp_float8_all_gather=true"]
                    kept = self.losses(f"{recipe}-{mode}-kept", recipe, *overrides, ranks=2)
                    recomputed = self.losses(f"{recipe}-{mode}", recipe, *overrides,
                                             f"activation_checkpoint.mode={mode}", ranks=2)
                    self.assertEqual(recomputed, kept)

    def test_health_is_sampled_and_described(self):
        status, errors, _ = self.train("run", "delayed", "float8.filter_fqns=[lm_head,layers.1.*]")
        self.assertEqual(status, 0, errors)
        self.assertIn("layers.*.self_attn.qkv_proj  32 -> 64  x 1  float8", errors)
        self.assertIn("layers.*.mlp.down_proj  64 -> 32  x 1  as it was (filter_fqns has layers.1.*)", errors)
        self.assertIn("lm_head  32 -> 256  x 1  as it was (filter_fqns has lm_head)", errors)
        self.assertRegex(errors, r"float8 delayed: linears keep 0\.0 MB of inputs for backward instead of 0\.0 MB")
        lines = [line for line in self.runs.lines("run") if "float8" in line]
        self.assertEqual([line["step"] for line in lines], [1, 4, 8, 12])
        for line in lines:
            self.assertEqual(set(line["float8"]), {f"layers.0.{name}" for name in (
                "self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")})
            for layer in line["float8"].values():
                self.assertEqual(set(layer), {"input", "weight", "grad_output"})
                for operand in layer.values():
                    self.assertTrue(0 <= operand["saturated"] <= 1 and 0 <= operand["underflowed"] <= 1)
                    self.assertTrue(0 < operand["scale_min"] <= operand["scale_max"] < math.inf)

    def test_degenerate_layer_is_named(self):
        # e4m3 with one scale for a tensor underflows where an operand spans many orders: weights of 1e-9 beside one.
        status, errors, _ = self.train("run", "tensorwise", "training.steps=2", "optimizer.lr=1.0e-20",
                                       "model.initializer_range=1.0e-9", "float8.casts=[grad_output=e4m3]")
        self.assertEqual(status, 0, errors)
        self.assertRegex(errors, r"step 1  float8: \w+ of layers\.\d\.\S+: \d+\.\d\d % of its elements underflow")

    def test_exports_the_weights_as_trained(self):
        status, errors, folder = self.train("run", "rowwise", "export.enable=true")
        self.assertEqual(status, 0, errors)
        exported = load_file(folder / "hf/model.safetensors")
        saved = load_file(folder / "checkpoints/step-00000012/rank-00000.safetensors")
        down = next(value for name, value in saved.items() if "layers.1.mlp.down_proj.weight" in name
                    and name.startswith("model."))
        name = "model.layers.1.mlp.down_proj.weight"
        self.assertEqual(exported[name].dtype, torch.float32)
        self.assertTrue(torch.equal(exported[name], down.view_as(exported[name])))

    def test_mistakes_are_told(self):
        for overrides, expected in [
                (["float8.recipe_name=fp8"], "one of none, tensorwise"),
                (["float8.recipe_name=mxfp8", "float8.enable_fsdp_float8_all_gather=true"], "blocks do not end"),
                (["float8.casts=[weight=disabled]"], "both operands of output in fp8"),
                (["float8.casts=[weights=e4m3]"], "expected an operand among input, weight, grad_output"),
                (["float8.casts=[weight=1x32]"], "e8m0"),
                (["parallelism.fsdp_reshard_after_forward=2"], "default, always or never with float8"),
                (["float8.amax_history_len=0"], "float8.amax_history_len")]:
            with self.subTest(overrides):
                status, errors, _ = self.train("bad", "tensorwise", *overrides)
                self.assertEqual(status, 2, errors)
                self.assertIn(expected, errors)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
