"""Training-step speed on one GPU beside PyTorch and torchao, all in one run, in turn.

Usage: train_step.py [--narrowgauge PROGRAM] [--models NAME ...] [--ours NAME ...] [--peers NAME ...] [--steps 20] [--rounds 1]
                     [--timeout 300] [--json FILE] [--profile FOLDER]
    models  llama_12m (8 x 256 tokens), gpt2_124m (16 x 1024), llama_1b (4 x 2048), and with 1 x 8192 llama3_1b, llama3_3b,
            llama3_8b (ours keeps bf16 parameters, stochastically rounded, and 8-bit moments, or it would not fit)
    ours    bf16, float8_tensorwise, float8_tensorwise_exact (no fast accumulation), float8_rowwise, float8_delayed
            (Linears but lm_head, as the peers); ratios are the first one's
    peers   eager, compile, float8_tensorwise, float8_rowwise (both with torch.compile; they need torchao)
    profile  no timing: the kernels of one step of each of ours, with gaps and host calls, are printed and kept in FOLDER
            beside the trace (chrome://tracing, Perfetto)
The timeout of a peer counts its compilation: with a vocabulary of 128 k, 16 to 32 layers and fp8 that takes minutes on
cold caches, and one that is cut off leaves nothing behind, so give 600 there.
Needs no more than python3 with torch: PROGRAM may be that of a bundle (tools/bundle.sh). A figure is the median over the
steps after a warm-up. A peer that fails is reported as such and the rest goes on.
"""
import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
WARMUP_STEPS = 5
PROFILED_STEP = 10
# GPT-2's width and depth in this architecture.
MODELS = {
    "llama_12m": dict(vocab_size=4096, dim=384, num_layers=6, num_heads=6, num_kv_heads=2, ffn_dim=1024, seq_len=256,
                      batch_size=8),
    "gpt2_124m": dict(vocab_size=50304, dim=768, num_layers=12, num_heads=12, num_kv_heads=12, ffn_dim=2048, seq_len=1024,
                      batch_size=16),
    "llama_1b": dict(vocab_size=32000, dim=2048, num_layers=20, num_heads=16, num_kv_heads=4, ffn_dim=5632, seq_len=2048,
                     batch_size=4),
    "llama3_1b": dict(vocab_size=128256, dim=2048, num_layers=16, num_heads=32, num_kv_heads=8, ffn_dim=8192, seq_len=8192,
                      batch_size=1),
    "llama3_3b": dict(vocab_size=128256, dim=3072, num_layers=28, num_heads=24, num_kv_heads=8, ffn_dim=8192, seq_len=8192,
                      batch_size=1),
    "llama3_8b": dict(vocab_size=128256, dim=4096, num_layers=32, num_heads=32, num_kv_heads=8, ffn_dim=14336, seq_len=8192,
                      batch_size=1),
}
# What a model asks of our runs beyond the contestant's own overrides.
OF_MODEL = {"llama3_8b": ["training.dtype=bfloat16", "optimizer.bf16_stochastic_round=true", "optimizer.name=AdamW8bit"]}
OURS = {
    "bf16": [],
    "float8_tensorwise": ["float8.recipe_name=tensorwise"],
    "float8_tensorwise_exact": ["float8.recipe_name=tensorwise", "float8.use_fast_accum=[]"],
    "float8_rowwise": ["float8.recipe_name=rowwise"],
    "float8_delayed": ["float8.recipe_name=delayed"],
}
PEERS = {
    "eager": [],
    "compile": ["--compile"],
    "float8_tensorwise": ["--compile", "--float8=tensorwise"],
    "float8_rowwise": ["--compile", "--float8=rowwise"],
}


def run_narrowgauge(args, shape, overrides=(), steps=None, keep=None):
    """keep: where the run's traces go."""
    steps = steps or args.steps + WARMUP_STEPS
    with tempfile.TemporaryDirectory() as folder:
        model = [f"model.{key}={shape[key]}" for key in
                 ("vocab_size", "dim", "num_layers", "num_heads", "num_kv_heads", "ffn_dim")]
        subprocess.run(
            [args.narrowgauge, "train", ROOT / "configs/bench/llama_12m.yaml", f"job.run_dir={folder}/run", *model,
             f"model.max_seq_len={shape['seq_len']}", f"training.seq_len={shape['seq_len']}",
             f"training.local_batch_size={shape['batch_size']}", f"training.global_batch_size={shape['batch_size']}",
             f"training.steps={steps}", "training.device=cuda", *overrides],
            check=True, capture_output=True, text=True)
        lines = [line for line in map(json.loads, open(f"{folder}/run/metrics.jsonl")) if "step_seconds" in line]
        if keep:
            shutil.copytree(f"{folder}/run/profile_traces", keep)
    return dict(step_seconds=[line["step_seconds"] for line in lines][WARMUP_STEPS:], loss=lines[-1]["loss"],
                peak_memory_bytes=lines[-1]["peak_memory_bytes"])


def run_peer(args, shape, options):
    command = [sys.executable, ROOT / "benchmarks/peers/train_step.py", f"--steps={args.steps}",
               f"--warmup={WARMUP_STEPS}", "--device=cuda", *options,
               *(f"--{key.replace('_', '-')}={value}" for key, value in shape.items())]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=args.timeout)
    return json.loads(output.stdout.splitlines()[-1])


def contestants(args, model):
    for name in args.ours:
        yield f"ours {name}", lambda shape, overrides=OURS[name] + OF_MODEL.get(model, []): run_narrowgauge(args, shape,
                                                                                                           overrides)
    for name in args.peers:
        yield name, lambda shape, options=PEERS[name]: run_peer(args, shape, options)


def measure(args, model):
    """{contestant: its runs, or the error of one that failed}."""
    results = {}
    for _ in range(args.rounds):
        for name, run in contestants(args, model):
            if isinstance(results.get(name), str):
                continue
            try:
                results.setdefault(name, []).append(run(MODELS[model]))
            except (subprocess.SubprocessError, OSError) as error:
                lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
                results[name] = lines[-1] if lines else "failed"
                print(f"{model} {name}: {getattr(error, 'stderr', error)}", file=sys.stderr)
    return results


def profile(args, model):
    """The last of PROFILED_STEP steps of each of ours."""
    for name in args.ours:
        keep = args.profile / f"{model}-{name}"
        run_narrowgauge(args, MODELS[model], [*OURS[name], *OF_MODEL.get(model, []), "profiling.enable_profiling=true",
                                              f"profiling.profile_freq={PROFILED_STEP}"], PROFILED_STEP, keep)
        table = keep / f"iteration_{PROFILED_STEP}/rank0_kernels.txt"
        print(f"== {model} {name}\n{table.read_text()}", flush=True)


def print_table(args, model, results):
    ours = f"ours {args.ours[0]}"
    shape = MODELS[model]
    tokens = shape["batch_size"] * shape["seq_len"]
    speeds = {name: tokens / statistics.median(s for run in runs for s in run["step_seconds"])
              for name, runs in results.items() if not isinstance(runs, str)}
    for name, runs in results.items():
        if name not in speeds:
            print(f"{model:10} {name:22} {runs[:100]}")
            continue
        ratio = f"{speeds[ours] / speeds[name]:8.2f}" if ours in speeds else " " * 8
        memory = max(run["peak_memory_bytes"] for run in runs) / 2**20
        print(f"{model:10} {name:22} {1000 * tokens / speeds[name]:9.2f} ms {speeds[name]:10.0f} tokens/s {ratio} "
              f"{memory:9.0f} MiB  loss {runs[-1]['loss']:.4f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--narrowgauge", type=pathlib.Path, default=ROOT / "narrowgauge")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["llama_12m", "gpt2_124m", "llama_1b"])
    parser.add_argument("--ours", nargs="+", choices=list(OURS), default=["bf16"])
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=300, help="seconds for a peer, its compilation included")
    parser.add_argument("--json", help="write every figure here")
    parser.add_argument("--profile", type=pathlib.Path, help="write traces of ours there instead of timing")
    args = parser.parse_args()
    if args.profile:
        for model in args.models:
            profile(args, model)
        return
    everything = {}
    print(f"{'model':10} {'':22} {'a step':>12} {'':>19} {'ours/it':>8} {'peak':>13}")
    for model in args.models:
        everything[model] = measure(args, model)
        print_table(args, model, everything[model])
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
