"""The peer of configs/bench/llama_12m.yaml: the same model, batch and optimizer in PyTorch, eager or torch.compile, in
bf16, torchao's float8 or its fake quantization; under torchrun sharded by FSDP2 over Gloo, each block a group, parameters and computation in
--dtype, reductions in fp32.

Prints one JSON object: the seconds of each step after the warm-up, tokens a step, peak resident bytes (of rank 0)
and the last loss (its rank's). Usage: train_step.py [--steps N] [--warmup N] [--threads N] [--compile]
[--float8 tensorwise|rowwise [--emulate]] [--qat 8da4w|int4-weight-only] [shape options]
batch_size is of all ranks, threads are of each.
"""
import argparse
import contextlib
import dataclasses
import json
import os
import resource
import time

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-5)


def rotary_table(length, head_dim, theta):
    inv_freq = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(length).float(), inv_freq)
    return torch.cos(angles), torch.sin(angles)


def rotate(x, cos, sin):
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


class Block(nn.Module):
    def __init__(self, dim, num_heads, num_kv_heads, ffn_dim):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, dim // num_heads
        kv_dim = num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, kv_dim, bias=False)
        self.v_proj = nn.Linear(dim, kv_dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)
        self.gate_proj = nn.Linear(dim, ffn_dim, bias=False)
        self.up_proj = nn.Linear(dim, ffn_dim, bias=False)
        self.down_proj = nn.Linear(ffn_dim, dim, bias=False)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(dim), RMSNorm(dim)

    def forward(self, x, cos, sin):
        batch, length, dim = x.shape
        y = self.input_layernorm(x)
        q = self.q_proj(y).view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(y).view(batch, length, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(y).view(batch, length, self.num_kv_heads, self.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        attended = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=self.num_heads != self.num_kv_heads)
        x = x + self.o_proj(attended.transpose(1, 2).reshape(batch, length, dim))
        y = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


class Llama(nn.Module):
    def __init__(self, vocab_size, dim, num_layers, num_heads, num_kv_heads, ffn_dim, seq_len, theta=10000.0):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, dim)
        self.layers = nn.ModuleList(Block(dim, num_heads, num_kv_heads, ffn_dim) for _ in range(num_layers))
        self.norm = RMSNorm(dim)
        self.lm_head = nn.Linear(dim, vocab_size, bias=False)
        cos, sin = rotary_table(seq_len, dim // num_heads, theta)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def forward(self, tokens, targets):
        x = self.embed_tokens(tokens)
        for block in self.layers:
            x = block(x, self.cos, self.sin)
        return F.cross_entropy(self.lm_head(self.norm(x)).float().flatten(0, 1), targets.flatten())


def shard(model, dtype):
    """FSDP2 as torchtitan applies it to a dense model."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    dist.init_process_group("gloo")
    options = dict(mesh=init_device_mesh("cpu", (dist.get_world_size(),)),
                   mp_policy=MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32))
    for block in model.layers:
        fully_shard(block, **options)
    fully_shard(model, **options)


def prepare(model, scheme):
    """8da4w with groups of 32 as in ExecuTorch's recipe, int4 with groups of 128, torchao's default."""
    from torchao.quantization import Int4WeightOnlyConfig, quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig
    if scheme == "8da4w":
        config = QATConfig(activation_config=IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False),
                           weight_config=IntxFakeQuantizeConfig(torch.int4, group_size=32), step="prepare")
    else:
        config = QATConfig(Int4WeightOnlyConfig(group_size=128), step="prepare")
    quantize_(model, config, filter_fn=lambda module, name: isinstance(module, nn.Linear) and name != "lm_head")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    shape = dict(vocab_size=4096, dim=384, num_layers=6, num_heads=6, num_kv_heads=2, ffn_dim=1024, seq_len=256,
                 batch_size=8)
    for name, default in dict(steps=12, warmup=3, threads=2, **shape).items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--float8", choices=["tensorwise", "rowwise"], help="torchao's recipe for all layers but lm_head")
    parser.add_argument("--emulate", action="store_true",
                        help="torchao's fp32 products of dequantized operands; on CPU it has no others for rowwise")
    parser.add_argument("--qat", choices=["8da4w", "int4-weight-only"], help="torchao's scheme for all layers but lm_head")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = Llama(args.vocab_size, args.dim, args.num_layers, args.num_heads, args.num_kv_heads, args.ffn_dim,
                  args.seq_len).to(args.device)
    if args.float8:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
        recipe = Float8LinearConfig.from_recipe_name(args.float8)
        convert_to_float8_training(model, config=dataclasses.replace(recipe, emulate=args.emulate),
                                   module_filter_fn=lambda module, name: name != "lm_head")
    if args.qat:
        prepare(model, args.qat)
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    autocast = torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16")
    if ranks > 1:
        shard(model, getattr(torch, args.dtype))
        autocast = contextlib.nullcontext()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    run = torch.compile(model) if args.compile else model
    tokens = torch.randint(0, args.vocab_size, (args.batch_size // ranks, args.seq_len)).to(args.device)
    targets = torch.randint(0, args.vocab_size, (args.batch_size // ranks, args.seq_len)).to(args.device)
    seconds = []
    first_step_at = None
    for _ in range(args.warmup + args.steps):
        started = time.perf_counter()
        with autocast:
            loss = run(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # waits for the device
        seconds.append(time.perf_counter() - started)
        first_step_at = first_step_at or time.time()
    if ranks > 1:
        torch.distributed.destroy_process_group()
    if int(os.environ.get("RANK", 0)) > 0:
        return
    print(json.dumps(dict(
        step_seconds=seconds[args.warmup:], tokens_per_step=args.batch_size * args.seq_len, loss=loss.item(),
        first_step_at=first_step_at, peak_memory_bytes=torch.cuda.max_memory_allocated() if args.device == "cuda" else
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)))


if __name__ == "__main__":
    main()
