"""`plan` against the resident memory of real runs on the CPU, five shapes, within 10 %.

    peak_resident_test.py NARROWGAUGE
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

NARROWGAUGE = os.path.abspath(sys.argv.pop(1))
WITHIN = 0.10
SHAPES = {
    "12.6 M, bf16, 2,048 tokens": (
        "dim: 384, num_layers: 6, num_heads: 6, num_kv_heads: 2, ffn_dim: 1024, vocab_size: 4096",
        "seq_len: 256, local_batch_size: 8, mixed_precision_param: bfloat16"),
    "12.6 M, fp32, 4 passes": (
        "dim: 384, num_layers: 6, num_heads: 6, num_kv_heads: 2, ffn_dim: 1024, vocab_size: 4096",
        "seq_len: 256, local_batch_size: 4, global_batch_size: 16, mixed_precision_param: float32"),
    "wide vocabulary": (
        "dim: 256, num_layers: 4, num_heads: 4, num_kv_heads: 4, ffn_dim: 704, vocab_size: 32000",
        "seq_len: 256, local_batch_size: 4, mixed_precision_param: bfloat16"),
    "deep, normed heads, tied": (
        "architecture: qwen3, dim: 256, num_layers: 16, num_heads: 4, num_kv_heads: 2, ffn_dim: 768, vocab_size: 2000, "
        "tie_word_embeddings: true", "seq_len: 512, local_batch_size: 4, mixed_precision_param: bfloat16"),
    "few tokens, 58 M": (
        "dim: 768, num_layers: 8, num_heads: 12, num_kv_heads: 4, ffn_dim: 2048, vocab_size: 4096",
        "seq_len: 64, local_batch_size: 1, mixed_precision_param: bfloat16"),
}


class PeakResident(unittest.TestCase):
    def test_five_shapes(self):
        for name, (model, training) in SHAPES.items():
            with self.subTest(name), tempfile.TemporaryDirectory() as folder:
                folder = pathlib.Path(folder)
                config = folder / "c.yaml"
                config.write_text(
                    f"job: {{run_dir: {folder}/run}}\nmodel: {{{model}}}\ntokenizer: {{kind: none}}\n"
                    f"data: {{train: [random_tokens]}}\ntraining: {{steps: 5, device: cpu, num_threads: 1, {training}}}\n"
                    "checkpoint: {enable: false}\nexport: {enable: false}\n")
                planned = json.loads(subprocess.run([NARROWGAUGE, "plan", config, "--gpu", "cpu", "--json"], check=True,
                                                    capture_output=True, timeout=60).stdout)["memory_bytes"]["total"]
                subprocess.run([NARROWGAUGE, "train", config], check=True, capture_output=True, timeout=600)
                lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
                measured = lines[-1]["peak_memory_bytes"]
                print(f"{name:28} planned {planned / 2**20:7.1f} MiB, measured {measured / 2**20:7.1f} MiB, "
                      f"{100 * (planned / measured - 1):+.1f} %", flush=True)
                self.assertAlmostEqual(planned / measured, 1, delta=WITHIN)


if __name__ == "__main__":
    unittest.main()
