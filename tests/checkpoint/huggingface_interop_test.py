"""transformers writes random models, our reader and writer rewrite them, transformers loads them again:
equal weights, configuration and logits. Also llama2.c import against run.c's formulas in numpy.

Usage: huggingface_interop_test.py REWRITE_MODEL
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

os.environ["HF_HUB_OFFLINE"] = "1"
import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

transformers.logging.disable_progress_bar()
REWRITE = os.path.abspath(sys.argv.pop(1))
SHAPE = dict(vocab_size=97, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=[2, 5])
# Keys that say nothing about what the model computes.
IGNORED = {"transformers_version", "_name_or_path", "architectures", "use_cache", "max_window_layers"}


def rewrite(source, target, dtype="float32", max_shard_bytes=10**9):
    return subprocess.run([REWRITE, source, target, dtype, str(max_shard_bytes)], capture_output=True, text=True)


def build(config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # norms and biases too, or a swap of two would not show
        torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id = config.eos_token_id
    return model


def logits(model):
    with torch.no_grad():
        return model(torch.arange(40).remainder(97).view(2, 20)).logits


class HuggingFaceInterop(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.source = os.path.join(self.folder.name, "in")
        self.target = os.path.join(self.folder.name, "out")

    def check(self, config, max_shard_size="5GB", max_shard_bytes=10**9, old_spelling=False):
        model = build(config)
        model.save_pretrained(self.source, max_shard_size=max_shard_size)
        if old_spelling:
            self.spell_as_transformers_4()
        done = rewrite(self.source, self.target, max_shard_bytes=max_shard_bytes)
        self.assertEqual((done.returncode, done.stdout), (0, ""), done.stderr)
        again, info = transformers.AutoModelForCausalLM.from_pretrained(self.target, output_loading_info=True)
        self.assertFalse(any(info.values()), info)
        self.assertEqual(again.dtype, torch.float32)
        expected = model.state_dict()
        self.assertEqual(expected.keys(), again.state_dict().keys())
        for name, tensor in again.state_dict().items():
            self.assertTrue(torch.equal(tensor, expected[name]), name)
        for key, value in config.to_dict().items():
            if key not in IGNORED:
                self.assertEqual(value, again.config.to_dict()[key], key)
        self.assertEqual(again.generation_config.eos_token_id, config.eos_token_id)
        self.assertEqual(again.generation_config.bos_token_id, config.bos_token_id)
        self.assertTrue(torch.equal(logits(model), logits(again)))
        return again

    def spell_as_transformers_4(self):
        path = pathlib.Path(self.source, "config.json")
        config = json.loads(path.read_text())
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
        config["torch_dtype"] = config.pop("dtype")
        path.write_text(json.dumps(config))

    def test_llama(self):
        self.check(transformers.LlamaConfig(**SHAPE))

    def test_llama_tied_with_biases_and_own_head_dim(self):
        self.check(transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
                                            head_dim=12, rms_norm_eps=3e-5, initializer_range=0.011))
        self.assertNotIn("lm_head.weight", load_file(os.path.join(self.target, "model.safetensors")))

    def test_llama3_rope_in_both_spellings(self):
        rope = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                    original_max_position_embeddings=32)
        for old_spelling in (False, True):
            again = self.check(transformers.LlamaConfig(**SHAPE, rope_parameters=dict(rope)), old_spelling=old_spelling)
            self.assertEqual(again.config.rope_parameters, rope)

    def test_linear_rope(self):
        rope = dict(rope_type="linear", rope_theta=1000.0, factor=2.5)
        again = self.check(transformers.LlamaConfig(**SHAPE, rope_parameters=dict(rope)))
        self.assertEqual(again.config.rope_parameters, rope)

    def test_qwen2_tied_sharded_both_ways(self):
        self.check(transformers.Qwen2Config(**SHAPE, tie_word_embeddings=True), "10KB", 9000)
        index = json.loads(pathlib.Path(self.target, "model.safetensors.index.json").read_text())
        self.assertGreater(len(set(index["weight_map"].values())), 3)
        self.assertEqual({f for f in os.listdir(self.target) if f.startswith("model-")}, set(index["weight_map"].values()))

    def test_qwen2_untied(self):
        self.check(transformers.Qwen2Config(**SHAPE), old_spelling=True)

    def test_qwen3_untied_sharded(self):
        self.check(transformers.Qwen3Config(**SHAPE, head_dim=16), "10KB", 1)

    def test_qwen3_tied_with_bias(self):
        self.check(transformers.Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=True, attention_bias=True))

    def test_mistral(self):
        self.check(transformers.MistralConfig(**SHAPE, sliding_window=None))

    def test_mistral_window_is_refused(self):
        build(transformers.MistralConfig(**SHAPE, sliding_window=16)).save_pretrained(self.source)
        done = rewrite(self.source, self.target)
        self.assertEqual(done.returncode, 1)
        self.assertIn("window of 16", done.stderr)
        self.assertFalse(os.path.exists(self.target))

    def test_bfloat16_in_and_out_and_extra_tensors(self):
        model = build(transformers.LlamaConfig(**SHAPE)).to(torch.bfloat16)
        model.save_pretrained(self.source)
        path = os.path.join(self.source, "model.safetensors")
        weights = load_file(path)
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        weights["value_head.weight"] = torch.ones(4)
        save_file(weights, path, metadata={"format": "pt"})
        done = rewrite(self.source, self.target, "bfloat16")
        self.assertEqual((done.returncode, done.stdout), (0, "unused value_head.weight\n"), done.stderr)
        # Loaded, not converted: model.to(bfloat16) also rounds the rotary frequencies.
        first = transformers.AutoModelForCausalLM.from_pretrained(self.source)
        again = transformers.AutoModelForCausalLM.from_pretrained(self.target)
        self.assertEqual(again.dtype, torch.bfloat16)
        self.assertTrue(torch.equal(logits(first), logits(again)))


def llama2c_logits(weights, header, tokens):
    """run.c's forward in float64: interleaved rotary pairs."""
    dim, hidden, layers, heads, kv_heads, _, _ = header
    size = dim // heads
    norm = lambda x, w: x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w
    angle = np.arange(len(tokens))[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
    def rotate(x):  # [positions, heads, size]
        a, b = x[..., 0::2], x[..., 1::2]
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        return np.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)
    x = weights["embedding"][tokens]
    mask = np.triu(np.full((len(tokens),) * 2, -np.inf), 1)
    for i in range(layers):
        h = norm(x, weights["rms_att"][i])
        q = rotate((h @ weights["wq"][i].T).reshape(-1, heads, size))
        k = rotate((h @ weights["wk"][i].T).reshape(-1, kv_heads, size)).repeat(heads // kv_heads, 1)
        v = (h @ weights["wv"][i].T).reshape(-1, kv_heads, size).repeat(heads // kv_heads, 1)
        score = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(size) + mask
        score = np.exp(score - score.max(-1, keepdims=True))
        score /= score.sum(-1, keepdims=True)
        x = x + np.einsum("hqk,khd->qhd", score, v).reshape(-1, dim) @ weights["wo"][i].T
        h = norm(x, weights["rms_ffn"][i])
        gate = h @ weights["w1"][i].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ weights["w3"][i].T)) @ weights["w2"][i].T
    return norm(x, weights["rms_final"]) @ weights.get("wcls", weights["embedding"]).T


def llama2c_layout(header):
    dim, hidden, layers, heads, kv_heads, vocab, length = header
    kv = dim // heads * kv_heads
    shapes = dict(embedding=(abs(vocab), dim), rms_att=(layers, dim), wq=(layers, dim, dim), wk=(layers, kv, dim),
                  wv=(layers, kv, dim), wo=(layers, dim, dim), rms_ffn=(layers, dim), w1=(layers, hidden, dim),
                  w2=(layers, dim, hidden), w3=(layers, hidden, dim), rms_final=(dim,),
                  freq_cis=(2, length, dim // heads // 2))
    return shapes | (dict(wcls=(-vocab, dim)) if vocab < 0 else {})


def read_llama2c(path):
    header = np.fromfile(path, np.int32, 7).tolist()
    flat = np.fromfile(path, np.float32, offset=28).astype(np.float64)
    weights = {}
    for name, shape in llama2c_layout(header).items():
        weights[name], flat = flat[:np.prod(shape)].reshape(shape), flat[np.prod(shape):]
    return header, weights


class Llama2cInterop(unittest.TestCase):
    def check(self, path, folder, tokens):
        target = os.path.join(folder, "out")
        done = rewrite(str(path), target)
        self.assertEqual(done.returncode, 0, done.stderr)
        header, weights = read_llama2c(path)
        model = transformers.AutoModelForCausalLM.from_pretrained(target)
        with torch.no_grad():
            ours = model(torch.tensor([tokens])).logits[0].double().numpy()
        expected = llama2c_logits(weights, header, np.array(tokens))
        np.testing.assert_allclose(ours, expected, atol=2e-5 * np.abs(expected).max())

    def test_tied_and_untied(self):
        rng = np.random.default_rng(0)
        for vocab in (61, -61):
            header = [24, 40, 2, 6, 3, vocab, 32]
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder, "model.bin")
                weights = [rng.normal(0, 0.4, shape) for shape in llama2c_layout(header).values()]
                path.write_bytes(np.array(header, np.int32).tobytes() +
                                 b"".join(w.astype(np.float32).tobytes() for w in weights))
                self.check(path, folder, list(range(1, 30)))


if __name__ == "__main__":
    unittest.main()
