"""Runs of narrowgauge train with qat and lora: schemes learn, resume bit for bit, shard, recompute, begin late, and what is
exported holds the values that the last forward computed with.

Argument: narrowgauge (the binary; narrowgauge_torch beside it).
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine

from tiny_run import CONVERSION_CONFIG, TinyRuns

NARROWGAUGE = os.path.abspath(sys.argv[1])
SCHEMES = ["8da4w", "int8-dynamic-act-int8-weight", "float8-dynamic-act-float8-weight", "mxfp4", "nvfp4", "gguf-q4_0"]


# Adapts the model of the run BASE, whose shape comes with it.
TUNED_CONFIG = """
job:          {run_dir: "%(run)s"}
model:        {initial_load_path: BASE/hf}
tokenizer:    {kind: bytes}
data:         {train: [%(text)s], validation_fraction: 0.1, cache_dir: %(cache)s}
training:     {steps: 8, seq_len: 16, local_batch_size: 2, global_batch_size: 4, num_threads: 1, device: cpu}
optimizer:    {lr: 1.0e-2}
lora:         {rank: 4, alpha: 8}
"""


class TrainQAT(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.runs = TinyRuns(NARROWGAUGE, self.folder, config=CONVERSION_CONFIG)

    def train(self, name, scheme, *overrides, ranks=1):
        """Returns exit code, standard error and the run's folder."""
        return self.runs.run(name, f"qat.scheme={scheme}", *overrides, ranks=ranks)

    def losses(self, name, scheme, *overrides, ranks=1):
        status, errors, _ = self.train(name, scheme, *overrides, ranks=ranks)
        self.assertEqual(status, 0, errors)
        return [(line["step"], line["loss"], line["grad_norm"]) for line in self.runs.metrics(name)]

    def test_schemes_learn_and_resume_bit_for_bit(self):
        reference = self.losses("bf16", "none", "training.steps=30")
        for scheme in SCHEMES:
            with self.subTest(scheme):
                straight = self.losses(scheme, scheme, "training.steps=30")
                self.assertNotEqual(straight, reference)
                self.assertLess(abs(straight[-1][1] / reference[-1][1] - 1), 0.1)
                self.losses(f"{scheme}-again", scheme, "training.steps=30")
                resumed = self.losses(f"{scheme}-again", scheme, "training.steps=30", "checkpoint.load_step=12")
                self.assertEqual(resumed, straight)

    def test_it_begins_when_told_and_the_log_says_so(self):
        plain = self.losses("plain", "none")
        status, errors, _ = self.train("late", "8da4w", "qat.fake_quant_after_n_steps=5")
        self.assertEqual(status, 0, errors)
        self.assertIn("qat 8da4w: fake quantization from step 6 on", errors)
        self.assertIn("layers.*.self_attn.qkv_proj  32 -> 64  x 2  int4 symmetric per group of 32, inputs int8 asymmetric per token",
                      errors)
        self.assertIn("lm_head  32 -> 256  x 1  as it is (prepared by a rule only)", errors)
        self.assertIn("step 6  fake quantization is on", errors)
        late = [(line["step"], line["loss"], line["grad_norm"]) for line in self.runs.metrics("late")]
        self.assertEqual(late[:5], plain[:5])
        self.assertNotEqual(late[5:], plain[5:])
        resumed = self.losses("late", "8da4w", "qat.fake_quant_after_n_steps=5", "checkpoint.load_step=6")
        self.assertEqual(resumed, late)

    def test_ranks_and_recomputation_change_no_loss(self):
        for scheme in ("8da4w", "nvfp4"):
            with self.subTest(scheme):
                # Without clipping, whose norm is summed shard by shard: nothing else depends on the mesh.
                overrides = ["training.max_norm=0"]
                whole = self.losses(f"{scheme}-whole", scheme, *overrides,
                                    "parallelism.data_parallel_replicate_degree=2", ranks=2)
                sharded = self.losses(f"{scheme}-sharded", scheme, *overrides, ranks=2)
                self.assertEqual([loss for _, loss, _ in sharded], [loss for _, loss, _ in whole])
                for mode in ("full", "selective"):
                    recomputed = self.losses(f"{scheme}-{mode}", scheme, *overrides, f"activation_checkpoint.mode={mode}", ranks=2)
                    self.assertEqual(recomputed, sharded)

    def test_exports_the_codes_that_torchao_would_make(self):
        for ranks in (1, 2):
            with self.subTest(ranks=ranks):
                status, errors, folder = self.train(f"run{ranks}", "8da4w", "export.enable=true", "qat.overrides=[embed_tokens=intx-weight-only bits=8]",
                                                    ranks=ranks)
                self.assertEqual(status, 0, errors)
                weights = load_file(folder / "hf/model.safetensors")
                self.assertTrue((folder / "quantized/config.json").exists())
                with safe_open(folder / "quantized/quantized.safetensors", "pt") as file:
                    described = json.loads(file.metadata()["weights"])
                    self.assertEqual(len(described), 2 * 7 + 1)
                    for name, description in described.items():
                        spec = description["scheme"]["weight"]
                        weight = weights[f"{name}.weight"].to(torch.bfloat16)
                        group = spec["group_size"] if spec["granularity"] == "per_group" else weight.shape[1]
                        low, high = -(2 ** (spec["bits"] - 1)), 2 ** (spec["bits"] - 1) - 1
                        scale, zero = choose_qparams_affine(weight, MappingType.SYMMETRIC, (1, group), torch.int8, low, high,
                                                            spec["eps"], zero_point_dtype=torch.int8, keepdim=True)
                        codes = quantize_affine(weight, (1, group), scale, zero, torch.int8, low, high)
                        self.assertTrue(torch.equal(file.get_tensor(f"{name}.codes"), codes), name)
                        self.assertTrue(torch.equal(file.get_tensor(f"{name}.scale"), scale), name)

    def test_learned_ranges_train_shard_and_resume(self):
        for scheme in ("8da4w", "int4-weight-only"):
            with self.subTest(scheme):
                overrides = ["qat.learned_ranges=true", "qat.group_size=32", "training.max_norm=0"]
                straight = self.losses(f"{scheme}-learned", scheme, *overrides)
                self.losses(f"{scheme}-learned-again", scheme, *overrides)
                self.assertEqual(self.losses(f"{scheme}-learned-again", scheme, *overrides, "checkpoint.load_step=6"), straight)
                self.assertNotEqual(straight, self.losses(f"{scheme}-chosen", scheme, "qat.group_size=32", "training.max_norm=0"))
                whole = self.losses(f"{scheme}-whole", scheme, *overrides, "parallelism.data_parallel_replicate_degree=2", ranks=2)
                sharded = self.losses(f"{scheme}-sharded", scheme, *overrides, ranks=2)
                self.assertEqual([loss for _, loss, _ in sharded], [loss for _, loss, _ in whole])
                late = self.losses(f"{scheme}-late", scheme, *overrides, "qat.fake_quant_after_n_steps=4")
                resumed = self.losses(f"{scheme}-late", scheme, *overrides, "qat.fake_quant_after_n_steps=4", "checkpoint.load_step=6")
                self.assertEqual(resumed, late)

    def test_exports_the_ranges_that_were_learned(self):
        for ranks in (1, 2):
            with self.subTest(ranks=ranks):
                status, errors, folder = self.train(f"learned{ranks}", "8da4w", "qat.learned_ranges=true", "export.enable=true", ranks=ranks)
                self.assertEqual(status, 0, errors)
                weights = load_file(folder / "hf/model.safetensors")
                self.assertFalse([name for name in weights if "scale" in name])
                moved = 0
                with safe_open(folder / "quantized/quantized.safetensors", "pt") as file:
                    described = json.loads(file.metadata()["weights"])
                    self.assertEqual(len(described), 2 * 7)
                    for name in described:
                        weight = weights[f"{name}.weight"].to(torch.bfloat16)
                        scale, codes = file.get_tensor(f"{name}.scale"), file.get_tensor(f"{name}.codes")
                        self.assertEqual(scale.dtype, torch.bfloat16)
                        chosen, zero = choose_qparams_affine(weight, MappingType.SYMMETRIC, (1, 32), torch.int8, -8, 7,
                                                          torch.finfo(torch.float32).eps, zero_point_dtype=torch.int8, keepdim=True)
                        expected = quantize_affine(weight, (1, 32), scale, zero, torch.int8, -8, 7)
                        self.assertTrue(torch.equal(codes, expected), name)
                        moved += (scale != chosen.view_as(scale)).sum().item()
                self.assertGreater(moved, 0)

    def test_lora_trains_its_adapters_alone(self):
        for scheme in ("none", "8da4w"):
            with self.subTest(scheme):
                base, errors, folder = self.train(f"base-{scheme}", "none", "export.enable=true")
                self.assertEqual(base, 0, errors)
                # The shape comes with the model.
                path = self.folder / f"tuned-{scheme}.yaml"
                path.write_text(f"""
job:          {{run_dir: {self.folder}/tuned-{scheme}}}
model:        {{initial_load_path: {folder}/hf}}
tokenizer:    {{kind: bytes}}
data:         {{train: [{self.runs.text}], validation_fraction: 0.1, cache_dir: {self.folder}/cache}}
training:     {{steps: 8, seq_len: 16, local_batch_size: 4, num_threads: 1, device: cpu}}
optimizer:    {{lr: 1.0e-2}}
qat:          {{scheme: {scheme}}}
lora:         {{rank: 4, alpha: 8}}
""")
                process = subprocess.run([NARROWGAUGE, "train", path], capture_output=True, text=True, timeout=240)
                self.assertEqual(process.returncode, 0, process.stderr)
                self.assertIn("lora rank 4: 8 linears have adapters", process.stderr)
                tuned = self.folder / f"tuned-{scheme}"
                before, after = load_file(folder / "hf/model.safetensors"), load_file(tuned / "hf/model.safetensors")
                adapter = load_file(tuned / "adapter/adapter_model.safetensors")
                description = json.loads((tuned / "adapter/adapter_config.json").read_text())
                scaling = description["lora_alpha"] / description["r"]
                self.assertEqual(len(adapter), 2 * 2 * 7)
                for name, weight in before.items():
                    module = "base_model.model." + name.removesuffix(".weight")
                    if f"{module}.lora_A.weight" in adapter:
                        merged = weight + scaling * adapter[f"{module}.lora_B.weight"] @ adapter[f"{module}.lora_A.weight"]
                        tolerance = 1e-5 if scheme == "none" else 2e-2  # merged in bf16, which is what was quantized
                        torch.testing.assert_close(after[name], merged, rtol=tolerance, atol=tolerance * weight.abs().max().item())
                        self.assertFalse(torch.equal(after[name], weight), name)
                    else:
                        self.assertTrue(torch.equal(after[name], weight), name)
                self.assertEqual((tuned / "quantized/quantized.safetensors").exists(), scheme != "none")

    def test_modules_to_save_train_in_full_and_are_saved_with_the_adapters(self):
        for name, tied, scheme, ranks in (("untied", "false", "none", 1), ("sharded", "false", "8da4w", 2), ("tied", "true", "none", 1)):
            with self.subTest(name):
                status, errors, base = self.train(f"{name}-base", "none", "export.enable=true", f"model.tie_word_embeddings={tied}")
                self.assertEqual(status, 0, errors)
                saved = ["model.embed_tokens", "model.norm", "model.layers.1.mlp.down_proj"] + ["lm_head"] * (tied == "false")
                modules = "embed_tokens,norm,layers.1.*.down_proj" + ",lm_head" * (tied == "false")
                runs = TinyRuns(NARROWGAUGE, self.folder, text=self.runs.text, config=TUNED_CONFIG.replace("BASE", str(base)))
                errors = runs.train(name, f"qat.scheme={scheme}", f"lora.modules_to_save=[{modules}]", ranks=ranks)
                self.assertIn(f"lora rank 4: 7 linears have adapters, {len(saved)} other layers train in full", errors)
                before, after = load_file(base / "hf/model.safetensors"), load_file(self.folder / name / "hf/model.safetensors")
                adapter = load_file(self.folder / name / "adapter/adapter_model.safetensors")
                description = json.loads((self.folder / name / "adapter/adapter_config.json").read_text())
                self.assertEqual(len(before), 20 + (tied == "false"))
                rebuilt = {}
                for full_name, weight in before.items():
                    module = full_name.removesuffix(".weight")
                    key = f"base_model.model.{module}"
                    if module in saved:
                        rebuilt[full_name] = adapter.pop(f"{key}.weight")
                        self.assertFalse(torch.equal(rebuilt[full_name], weight), full_name)
                        self.assertTrue(torch.equal(after[full_name], rebuilt[full_name]), full_name)
                    elif f"{key}.lora_A.weight" in adapter:
                        merged = weight + 2 * adapter.pop(f"{key}.lora_B.weight") @ adapter.pop(f"{key}.lora_A.weight")
                        tolerance = 1e-5 if scheme == "none" else 2e-2  # merged in bf16, which is what was quantized
                        torch.testing.assert_close(after[full_name], merged, rtol=tolerance, atol=tolerance * weight.abs().max().item())
                        self.assertFalse(torch.equal(after[full_name], weight), full_name)
                    else:
                        self.assertTrue(torch.equal(after[full_name], weight), full_name)
                if tied == "true":
                    # peft would wrap the tied head and the embedding each on its own.
                    saved.append("lm_head")
                    self.assertTrue(torch.equal(adapter.pop("base_model.model.lm_head.weight"), after["model.embed_tokens.weight"]))
                self.assertEqual(adapter, {})
                self.assertEqual(sorted(description["modules_to_save"]), sorted(saved))
                # The checkpoint holds all that the run exported.
                path = self.folder / f"{name}-exported"
                subprocess.run([NARROWGAUGE, "export", self.folder / name, "--output", path, "--dtype", "float32"], check=True,
                               capture_output=True, timeout=240)
                again = load_file(path / "model.safetensors")
                self.assertEqual(sorted(again), sorted(after))
                for full_name, weight in after.items():
                    self.assertTrue(torch.equal(again[full_name], weight), full_name)

    def test_adapter_dropout_resumes_recomputes_and_is_of_training_alone(self):
        adapters = ["lora.rank=4", "optimizer.lr=1e-2", "training.max_norm=0"]
        for scheme in ("none", "8da4w"):
            with self.subTest(scheme):
                plain = self.losses(f"{scheme}-plain", scheme, *adapters)
                overrides = [*adapters, "lora.dropout=0.5"]
                straight = self.losses(f"{scheme}-dropout", scheme, *overrides)
                self.assertEqual(straight[0][1], plain[0][1])  # B is zero
                self.assertNotEqual(straight[0][2], plain[0][2])
                self.losses(f"{scheme}-again", scheme, *overrides)
                self.assertEqual(self.losses(f"{scheme}-again", scheme, *overrides, "checkpoint.load_step=6"), straight)
                for mode in ("full", "selective"):
                    self.assertEqual(self.losses(f"{scheme}-{mode}", scheme, *overrides, f"activation_checkpoint.mode={mode}"), straight)
                # A step that applies nothing: forward in training drops, in validation it does not.
                still = ["checkpoint.load_step=6", "training.steps=7", "optimizer.lr=1e-30"]
                self.losses(f"{scheme}-dropout", scheme, *overrides, *still)
                self.losses(f"{scheme}-again", scheme, *overrides, *still, "lora.dropout=0.0")
                last = [self.runs.lines(f"{scheme}-{name}")[-2:] for name in ("dropout", "again")]
                self.assertNotEqual(last[0][0]["loss"], last[1][0]["loss"])
                self.assertEqual(last[0][1]["step"], 7)
                self.assertEqual(last[0][1]["validation_loss"], last[1][1]["validation_loss"])

    def test_adapter_dropout_does_not_depend_on_how_a_batch_is_shared(self):
        # Other ranks and micro-batches sum in another order, which is all that may differ.
        overrides = ["lora.rank=4", "lora.dropout=0.5", "optimizer.lr=1e-2", "training.max_norm=0",
                     "training.mixed_precision_param=float32"]
        whole = self.losses("whole", "none", *overrides)
        for name, split in (("ranks", self.losses("ranks", "none", *overrides, ranks=2)),
                            ("micro-batches", self.losses("micro-batches", "none", *overrides, "training.local_batch_size=4"))):
            for (step, loss, norm), (_, other, other_norm) in zip(whole, split, strict=True):
                self.assertAlmostEqual(other / loss, 1, delta=1e-5, msg=f"{name}, step {step}")
                self.assertAlmostEqual(other_norm / norm, 1, delta=1e-4, msg=f"{name}, step {step}")

    def test_mistakes_are_told(self):
        for overrides, expected in [
                (["qat.scheme=int5"], "one of none, 8da4w"),
                (["qat.overrides=[nobody=none]"], "expected a Linear or Embedding that nobody matches"),
                (["qat.overrides=[lm_head]"], "expected PATTERN=SCHEME"),
                (["qat.bits=3"], "has no choice of bits"),
                (["float8.recipe_name=tensorwise"], "expected none with qat"),
                (["lora.rank=4", "lora.targets=[no_proj]"], "expected a linear whose name ends with no_proj"),
                (["qat.scheme=mxfp4", "qat.learned_ranges=true"], "its scales are the format's own"),
                (["qat.scheme=none", "qat.learned_ranges=true"], "expected false without qat.scheme"),
                (["lora.rank=4", "lora.modules_to_save=[no_norm]"], "expected a layer with parameters whose name ends with no_norm"),
                (["lora.rank=4", "lora.modules_to_save=[lm_head]", "model.tie_word_embeddings=true"], "where it is not tied to embed_tokens, lm_head"),
                (["lora.modules_to_save=[norm]"], "lora.modules_to_save: expected none without lora.rank"),
                (["lora.rank=4", "lora.dropout=1.0"], "lora.dropout: expected a number in [0.0, 1.0)"),
                (["lora.dropout=0.1"], "lora.dropout: expected 0.0 without lora.rank"),
                (["qat.learned_ranges=true", "lora.rank=4"], "expected false with lora.rank > 0"),
                (["parallelism.fsdp_reshard_after_forward=2"], "default, always or never with qat")]:
            with self.subTest(overrides):
                status, errors, _ = self.train("bad", "8da4w", *overrides)
                self.assertEqual(status, 2, errors)
                self.assertIn(expected, errors)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
