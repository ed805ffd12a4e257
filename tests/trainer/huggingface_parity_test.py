"""The same logits as transformers, from directories that transformers wrote and into directories that it reads.

Arguments: print_logits and narrowgauge_torch (binaries).
"""
import itertools
import pathlib
import subprocess
import sys
import tempfile
import unittest

import numpy as np
import torch
from transformers import (AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM,
                          Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

PRINT_LOGITS, NARROWGAUGE = sys.argv[1:3]
VOCAB_SIZE = 97
# Both sides compute in fp32 with other orders of summation; logits here are of order 1.
TOLERANCE = 1e-4

SHAPE = dict(vocab_size=VOCAB_SIZE, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
             num_key_value_heads=2, max_position_embeddings=128)
LLAMA3_ROPE = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=64)
LINEAR_ROPE = dict(rope_type="linear", rope_theta=10000.0, factor=4.0)


def variants():
    for tied in (False, True):
        yield f"llama tied={tied}", LlamaForCausalLM, LlamaConfig(**SHAPE, tie_word_embeddings=tied)
        yield f"qwen2 tied={tied}", Qwen2ForCausalLM, Qwen2Config(**SHAPE, tie_word_embeddings=tied)
        yield (f"qwen3 tied={tied}", Qwen3ForCausalLM,
               Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=tied))
    yield "mistral", MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=None)
    yield "llama rope llama3", LlamaForCausalLM, LlamaConfig(**SHAPE, rope_parameters=LLAMA3_ROPE)
    yield "llama rope linear", LlamaForCausalLM, LlamaConfig(**SHAPE, rope_parameters=LINEAR_ROPE)
    yield "llama with biases", LlamaForCausalLM, LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True)


def randomise(model):
    """Norms and biases too: as they are initialised, a mistake in them would not show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.1 * noise)
    return model


def reference_logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float().numpy()


def our_logits(directory, tokens):
    output = subprocess.run([PRINT_LOGITS, directory, *map(str, tokens)], check=True, capture_output=True).stdout
    return np.frombuffer(output, dtype=np.float32).reshape(len(tokens), VOCAB_SIZE)


class HuggingFaceParity(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.tokens = torch.randint(0, VOCAB_SIZE, (50,)).tolist()

    def test_logits_of_directories_that_transformers_wrote(self):
        for (name, kind, config), shard_size in itertools.product(variants(), ("1GB", "40KB")):
            with self.subTest(name, shard_size=shard_size):
                model = randomise(kind(config)).eval()
                directory = self.folder / f"{name}-{shard_size}"
                model.save_pretrained(directory, max_shard_size=shard_size)
                if shard_size == "40KB":
                    self.assertTrue((directory / "model.safetensors.index.json").exists())
                difference = np.abs(our_logits(directory, self.tokens) - reference_logits(model, self.tokens)).max()
                self.assertLess(difference, TOLERANCE)

    def test_logits_of_directories_that_import_wrote(self):
        for name, kind, config in variants():
            with self.subTest(name):
                model = randomise(kind(config)).eval()
                model.save_pretrained(self.folder / name / "theirs")
                subprocess.run([NARROWGAUGE, "import", self.folder / name / "theirs", "--output", self.folder / name / "ours"],
                               check=True, capture_output=True)
                loaded = AutoModelForCausalLM.from_pretrained(self.folder / name / "ours").eval()
                self.assertEqual(type(loaded), kind)
                np.testing.assert_array_equal(reference_logits(loaded, self.tokens),
                                              reference_logits(model, self.tokens))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
