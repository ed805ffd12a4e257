"""Rotary tables against Hugging Face transformers, bit for bit: no scaling, linear, llama3.

Usage: rotary_table_transformers_test.py PEER, the binary of rotary_table_peer.cc.
"""
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

MAX_LEN = 300
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
CASES = [
    (64, 10000.0, {"rope_type": "default"}),
    (16, 10000.0, {"rope_type": "linear", "factor": 4.0}),
    (128, 500000.0, LLAMA3),
    (64, 500000.0, LLAMA3 | {"factor": 32.0}),
    (20, 1000000.0, {"rope_type": "default"}),
    (48, 10000.0, LLAMA3 | {"original_max_position_embeddings": 64}),
]


def expected(head_dim, theta, rope):
    config = LlamaConfig(hidden_size=2 * head_dim, num_attention_heads=2, head_dim=head_dim,
                         max_position_embeddings=MAX_LEN, rope_parameters={"rope_theta": theta, **rope})
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(MAX_LEN)[None])
    return np.stack([cos[0, :, :head_dim // 2].numpy(), sin[0, :, :head_dim // 2].numpy()])


def actual(peer, head_dim, theta, rope):
    scaling = rope["rope_type"].replace("default", "none")
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "table.bin"
        values = [out, head_dim, MAX_LEN, theta, scaling, rope.get("factor", 1.0), rope.get("low_freq_factor", 1.0),
                  rope.get("high_freq_factor", 4.0), rope.get("original_max_position_embeddings", 8192)]
        subprocess.run([peer, *map(str, values)], check=True)
        return np.fromfile(out, dtype=np.float32).reshape(2, MAX_LEN, head_dim // 2)


def main():
    torch.set_num_threads(1)
    failures = 0
    for case in CASES:
        want, got = expected(*case), actual(sys.argv[1], *case)
        differing = np.argwhere(want.view(np.int32) != got.view(np.int32))
        if differing.size:
            failures += 1
            at = tuple(differing[0])
            print(f"{case}: {len(differing)} of {want.size} differ, first at {at}: expected {want[at]}, got {got[at]}")
    print(f"{len(CASES) - failures} of {len(CASES)} tables equal bit for bit")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
