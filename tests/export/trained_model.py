"""A small Llama that narrowgauge train has trained on Python sources, exported in every way the tests ask for.

The arguments of each test: narrowgauge (narrowgauge_torch beside it) and quantize_directory.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import torch
import transformers
from safetensors.torch import load_file

NARROWGAUGE, QUANTIZE = (os.path.abspath(path) for path in sys.argv[1:3])

CONFIG = """
job:          {run_dir: %(run)s}
model:        {architecture: llama, %(shape)s, max_seq_len: 256}
tokenizer:    {kind: %(tokenizer)s}
data:         {train: ['%(text)s'], validation_fraction: 0.1, cache_dir: %(cache)s}
training:     {steps: %(steps)d, seq_len: 64, local_batch_size: 8, num_threads: 1, mixed_precision_param: %(dtype)s,
               device: cpu}
optimizer:    {lr: 3.0e-3}
lr_scheduler: {warmup_steps: 10}
checkpoint:   {interval: 1000}
export:       {dtype: %(dtype)s}
generation:   {interval: 0}
"""
TEXT = pathlib.Path(torch.__file__).parent / "nn/modules/*.py"


def run(program, *arguments):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=500)
    if done.returncode != 0:
        raise AssertionError(f"{arguments}: exit code {done.returncode}\n{done.stderr}")
    return done.stderr


class TrainedModel(unittest.TestCase):
    """Trains one model for all cases of a class; each case works in self.folder."""
    DTYPE = "bfloat16"
    TOKENIZER = "bytes"
    STEPS = 150
    SHAPE = "dim: 128, num_layers: 2, num_heads: 4, num_kv_heads: 2, ffn_dim: 256"
    EXTRA = ""  # more sections

    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.run_dir = cls.folder / "run"
        config = cls.folder / "run.yaml"
        config.write_text(CONFIG % dict(run=cls.run_dir, cache=cls.folder / "cache", dtype=cls.DTYPE, text=TEXT,
                                        tokenizer=cls.TOKENIZER, steps=cls.STEPS, shape=cls.SHAPE) + cls.EXTRA)
        run(NARROWGAUGE, "train", config)
        losses = [json.loads(line) for line in (cls.run_dir / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in losses if "loss" in line]
        assert losses[-1] < 0.6 * losses[0], losses  # it has learned
        cls.plain = cls.run_dir / "hf"

    def quantize(self, scheme, *options):
        """Our quantized model; values.safetensors in it holds what its weights stand for."""
        quantized = self.folder / "-".join([scheme, *options]).replace("=", "")
        if not quantized.exists():
            run(QUANTIZE, self.plain, quantized, scheme, *options)
        return quantized

    def export(self, model, format, *options):
        output = self.folder / f"{model.name}.{format}{''.join(options)}"
        report = run(NARROWGAUGE, "export", model, "--format", format, "--output", output, *options)
        self.assertIn("read back and equal bit for bit", report)
        return output, report

    def values(self, quantized):
        return load_file(quantized / "values.safetensors")

    def reference(self, values, dtype=None):
        """The model with these weights, in transformers, without any quantizer."""
        config = transformers.AutoConfig.from_pretrained(self.plain)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype or getattr(torch, self.DTYPE))
        missing = model.load_state_dict(values, strict=False)
        self.assertEqual(missing.unexpected_keys, [])
        self.assertEqual([key for key in missing.missing_keys if key != "lm_head.weight"], [])
        return model.eval()

    def tokens(self, length=192):
        text = (pathlib.Path(torch.__file__).parent / "functional.py").read_bytes()
        return torch.tensor([list(text[20000:20000 + length])])

    @torch.no_grad()
    def logits(self, model):
        return model(self.tokens()).logits.float()[0]

    def compare(self, name, expected, actual):
        """Prints how far logits are apart; returns (largest difference, share of equal argmax)."""
        largest = (expected - actual).abs().max().item()
        agreement = (expected.argmax(-1) == actual.argmax(-1)).float().mean().item()
        print(f"{name}: largest logits difference {largest:.4g} of {expected.abs().max().item():.4g}, "
              f"argmax agreement {agreement:.4f} on {len(expected)} tokens", flush=True)
        return largest, agreement


def main():
    unittest.main(argv=sys.argv[:1])
