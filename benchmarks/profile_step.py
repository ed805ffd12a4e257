"""Where the milliseconds of a training step go, beside what its matrix products alone would take.

Usage (from the repository root; needs Linux perf):
    tools/python.sh benchmarks/profile_step.py [--config configs/bench/llama_12m.yaml] [--threads 1] [--steps 20]
        [--dtype bfloat16|float32] [--json FILE] [-- OVERRIDE ...]

Samples two runs of different length and subtracts, so that start-up drops out; a row is processor time a step over
the number of threads. The products are those of the model's linears, forward and both backwards, alone and back to
back in the same library. With more than one thread, the time that threads wait for each other is a row of its own.
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import torch
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = ROOT / "bazel-bin/trainer/narrowgauge_torch"
SAMPLES_PER_SECOND = 997
WARMUP_STEPS = 3

# First match wins: (row, shared object, symbol).
ROWS = [
    ("waiting for threads", r"libgomp|libiomp", r""),
    ("matrix products", r"JIT|unknown|anon|memfd", r""),
    ("matrix products", r"libtorch_cpu", r"dnnl|mkldnn|mkl_blas|gemm"),
    ("matrix products", r"libmkl", r""),
    ("attention", r"narrowgauge", r"kernels::(\(anonymous namespace\)::(pack|forward|backward)|(pack|forward|backward)_(bf16|float))"),
    ("rotary embedding", r"narrowgauge", r"rotate_back_and_join|split_and_rotate"),
    ("SwiGLU", r"narrowgauge", r"swiglu"),
    ("norms", r"narrowgauge", r"rms_norm"),
    ("softmax and loss", r"narrowgauge", r"cross_entropy"),
    ("embedding", r"narrowgauge", r"sum_rows|embedding"),
    ("fp8 casts and products", r"narrowgauge", r"float8"),
    ("optimizer", r"narrowgauge", r"optim::"),
    ("copies and casts", r"libtorch_cpu", r"copy"),
    ("additions and reductions", r"libtorch_cpu", r"native.*(add|sum|norm|mul|div|fill|binary_kernel)"),
    ("copies and casts", r"libc\.so", r"mem(cpy|move|set)"),
    ("kernel (page faults, scheduling)", r"kernel", r""),
    ("the rest of the program", r"", r""),
]


def row_of(shared_object, symbol):
    for row, object_pattern, symbol_pattern in ROWS:
        if re.search(object_pattern, shared_object) and re.search(symbol_pattern, symbol):
            return row
    raise AssertionError("the last row takes everything")


def count_samples(args, steps, folder):
    """{row: seconds of processor time} of a whole run."""
    data = f"{folder}/perf.data"
    command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(SAMPLES_PER_SECOND), "-o", data, BINARY, "train", args.config,
               f"job.run_dir={folder}/run-{steps}", f"training.steps={steps}", f"training.num_threads={args.threads}",
               f"training.mixed_precision_param={args.dtype}", "checkpoint.enable=false", "export.enable=false", *args.overrides]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    report = subprocess.run(["perf", "report", "-i", data, "--no-children", "--stdio", "-F", "sample,dso,symbol", "-t", ";"],
                            check=True, capture_output=True, text=True).stdout
    seconds = {}
    for line in report.splitlines():
        fields = [field.strip() for field in line.split(";", 2)]
        if len(fields) == 3 and fields[0].isdigit():
            row = row_of(fields[1], fields[2])
            seconds[row] = seconds.get(row, 0.0) + int(fields[0]) / SAMPLES_PER_SECOND
    return seconds


def product_shapes(config):
    """(name, inputs, outputs, how often) of the model's linears."""
    model = config["model"]
    dim, layers = model["dim"], model["num_layers"]
    head_dim = model.get("head_dim") or dim // model["num_heads"]
    q, kv = model["num_heads"] * head_dim, model["num_kv_heads"] * head_dim
    return [("qkv_proj", dim, q + 2 * kv, layers), ("o_proj", q, dim, layers), ("gate_up_proj", dim, 2 * model["ffn_dim"], layers),
            ("down_proj", model["ffn_dim"], dim, layers), ("lm_head", dim, model["vocab_size"], 1)]


def products_seconds(config, dtype, threads):
    """The least time of the products of a step, and their floating-point operations."""
    torch.set_num_threads(threads)
    tokens = config["training"]["local_batch_size"] * config["training"]["seq_len"]
    clock = time.thread_time if threads == 1 else time.perf_counter
    total, flops = 0.0, 0
    for _, inputs, outputs, count in product_shapes(config):
        x, weight, grad = (torch.randn(*shape).to(dtype) for shape in ((tokens, inputs), (outputs, inputs), (tokens, outputs)))
        for product in (lambda: torch.nn.functional.linear(x, weight), lambda: grad.mm(weight), lambda: grad.t().mm(x)):
            times = []
            for _ in range(8):
                started = clock()
                product()
                times.append(clock() - started)
            total += count * min(times)
            flops += count * 2 * tokens * inputs * outputs
    return total, flops


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=ROOT / "configs/bench/llama_12m.yaml")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--json", help="write every figure here")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    args = parser.parse_args()
    if not BINARY.exists():
        sys.exit("profile_step: expected a build; run ./narrowgauge --help once, or bazel build //trainer:narrowgauge_torch")
    with tempfile.TemporaryDirectory() as folder:
        print("profiling ...", file=sys.stderr)
        short = count_samples(args, WARMUP_STEPS, folder)
        long = count_samples(args, WARMUP_STEPS + args.steps, folder)
        config = yaml.safe_load(open(f"{folder}/run-{WARMUP_STEPS}/config.yaml"))
    rows = {row: 1000 * (long[row] - short.get(row, 0.0)) / args.steps / args.threads for row in long}
    products, flops = products_seconds(config, getattr(torch, args.dtype), args.threads)
    total = sum(rows.values())
    print(f"{args.dtype}, {args.threads} thread(s), {args.steps} steps: ms a step")
    for row, ms in sorted(rows.items(), key=lambda item: -item[1]):
        if ms >= 0.05:
            print(f"  {row:34} {ms:8.1f}  {ms / total:5.1%}")
    print(f"  {'all':34} {total:8.1f}")
    print(f"the matrix products alone: {1000 * products:.1f} ms, {flops / products / 1e9:.0f} GFLOP/s; "
          f"the step runs at {1000 * products / total:.2f} of their speed")
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(dict(
            threads=args.threads, dtype=args.dtype, rows_ms=rows, products_ms=1000 * products, product_flops=flops), indent=1))


if __name__ == "__main__":
    main()
