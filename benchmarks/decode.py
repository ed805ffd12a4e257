"""Tokens per second of generation from quantized or 2:4 sparse weights beside bf16, all in one run, in turn.

Usage (from the repository root, after ./narrowgauge has built):
    tools/python.sh benchmarks/decode.py [--scheme NAME[:GROUP] ...] [--rounds 3] [--tokens 48] [--threads 2]
        [--dim 1536] [--layers 14] [--json FILE]

The model has random weights (speed does not depend on them) and more than 300 M parameters by default, many times the
caches: a token costs reading every weight once. Beside each figure stands the rate at which the weights were read, and
below the table what a plain sum of a large array reaches, the ceiling. lm_head stays in bf16 unless --head is given.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

ROOT = pathlib.Path(__file__).resolve().parent.parent
VOCAB_SIZE = 32000
SPARSE = "2:4"  # pruned by magnitude; values and metadata stay packed in memory
SCHEMES = [SPARSE, "int4-weight-only:128", "int4-weight-only:32", "int8-dynamic-act-int4-weight:32",
           "int8-weight-only", "float8-weight-only", "mxfp4", "nvfp4"]


def narrowgauge(args, *arguments):
    done = subprocess.run([args.narrowgauge, *map(str, arguments)], env=dict(os.environ, OMP_NUM_THREADS=str(args.threads)),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return done.stdout


def linear_shapes(args):
    head_dim, kv_dim, ffn = 64, args.dim // 4, args.dim * 8 // 3 // 128 * 128
    shapes = {"self_attn.q_proj": (args.dim, args.dim), "self_attn.k_proj": (kv_dim, args.dim),
              "self_attn.v_proj": (kv_dim, args.dim), "self_attn.o_proj": (args.dim, args.dim),
              "mlp.gate_proj": (ffn, args.dim), "mlp.up_proj": (ffn, args.dim), "mlp.down_proj": (args.dim, ffn)}
    config = LlamaConfig(vocab_size=VOCAB_SIZE, hidden_size=args.dim, intermediate_size=ffn, num_hidden_layers=args.layers,
                         num_attention_heads=args.dim // head_dim, num_key_value_heads=kv_dim // head_dim,
                         max_position_embeddings=1024, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    return shapes, config


def write_model(folder, args):
    shapes, config = linear_shapes(args)
    generator = torch.Generator().manual_seed(0)

    def values(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float32).mul_(0.02).bfloat16()

    tensors = {"model.embed_tokens.weight": values(VOCAB_SIZE, args.dim), "lm_head.weight": values(VOCAB_SIZE, args.dim),
               "model.norm.weight": torch.ones(args.dim, dtype=torch.bfloat16)}
    for layer in range(args.layers):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = torch.ones(args.dim, dtype=torch.bfloat16)
        for name, shape in shapes.items():
            tensors[f"{prefix}{name}.weight"] = values(*shape)
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return sum(tensor.numel() for tensor in tensors.values())


def weight_bytes(folder):
    """What a token reads: every weight but the embedding, of which it reads a row; int4 codes are packed in memory."""
    file = next(folder.glob("*.safetensors"))
    with open(file, "rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    total = 0
    four_bit = any(name in folder.name for name in ("int4", "mxfp4", "nvfp4"))
    for name, entry in header.items():
        if name not in ("__metadata__", "model.embed_tokens.weight"):
            size = entry["data_offsets"][1] - entry["data_offsets"][0]
            if folder.name == SPARSE.replace(":", "-") and "_proj" in name:
                size = size * 9 // 16
            total += size // 2 if four_bit and name.endswith(".codes") else size
    return total


def read_ceiling(threads):
    torch.set_num_threads(threads)
    array = torch.ones(256 << 20, dtype=torch.float32)
    rates = []
    for _ in range(5):
        started = time.perf_counter()
        array.sum()
        rates.append(array.nbytes / (time.perf_counter() - started))
    return statistics.median(rates)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--narrowgauge", default=ROOT / "narrowgauge", help="the program, where it is built already")
    parser.add_argument("--scheme", action="append", help="default: " + " ".join(SCHEMES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dim", type=int, default=1536)
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--head", action="store_true", help="quantize lm_head too")
    parser.add_argument("--json")
    return parser.parse_args()


def generate(folder, args):
    output = narrowgauge(args, "generate", "--model", folder, "--tokenizer", "bytes", "--prompt", "a", "--temperature", "0",
                         "--max-new-tokens", args.tokens, "--json")
    return json.loads(output)["tokens_per_second"]


def main():
    args = parse_arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        num_parameters = write_model(folder / "bf16", args)
        models = {"bf16": folder / "bf16"}
        for scheme in args.scheme or SCHEMES:
            name, _, group = scheme.partition(":")
            models[scheme] = folder / scheme.replace(":", "-")
            if scheme == SPARSE:
                narrowgauge(args, "prune", "--model", models["bf16"], "--tokenizer", "bytes", "--method", "magnitude",
                            "--pattern", SPARSE, "--output", models[scheme])
                continue
            narrowgauge(args, "quantize", "--model", models["bf16"], "--scheme", name, "--output", models[scheme],
                        *(["--group-size", group] if group else []), *(["--include-head"] if args.head else []))
        read = {name: weight_bytes(model) for name, model in models.items()}
        rates = {name: [] for name in models}
        for _ in range(args.rounds):
            for name, model in models.items():
                rates[name].append(generate(model, args))
        ceiling = read_ceiling(args.threads)
    result = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{num_parameters / 1e6:.0f} M parameters, {args.threads} threads, {args.tokens} tokens, median of {args.rounds}")
    print(f"{'weights':36} {'tokens/s':>9} {'ratio':>6} {'MB a token':>11} {'GB/s':>6}")
    for name, rate in result.items():
        print(f"{name:36} {rate:9.2f} {rate / result['bf16']:6.2f} {read[name] / 1e6:11.1f} {rate * read[name] / 1e9:6.1f}")
    print(f"reading memory: {ceiling / 1e9:.1f} GB/s")
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(dict(parameters=num_parameters, tokens_per_second=rates, read=ceiling)))


if __name__ == "__main__":
    main()
