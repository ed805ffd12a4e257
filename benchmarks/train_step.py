"""Training-step speed beside PyTorch, both in one run, in turn.

Usage (from the repository root):
    tools/python.sh benchmarks/train_step.py [--rounds 3] [--steps 12] [--threads 2] [--ranks 1]
        [--compile] [--dtype bfloat16|float32] [--float8 tensorwise|rowwise]
        [--qat 8da4w|int4-weight-only] [--model llama_12m|llama_134m] [--json FILE] [-- OVERRIDE ...]

Each round runs every contestant once as fresh processes on configs/bench/llama_12m.yaml with the model's shape; a
figure is the median over all rounds' steps. Times on a shared machine drift: only the ratio is worth quoting. With --ranks
the batch and the threads are divided among them: mpirun beside torchrun with FSDP2 over Gloo. --float8 takes
torchao's recipe there, ours of that name here, and our own bf16 as a further contestant; so does --qat. On CPU torchao has
two ways to compute tensorwise, torch._scaled_mm and its own emulation, and one for rowwise, the emulation: each is a
contestant. The time to the first step is that from the start of the process to the end of its first step; torch.compile
finds its own disk cache filled from the second round on. Overrides are keys of our configuration, such as activation_checkpoint.mode=full.
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

ROOT = pathlib.Path(__file__).resolve().parent.parent
WARMUP_STEPS = 3
BATCH_SIZE = 8
# Differences from configs/bench/llama_12m.yaml, under the names that our keys (model.*) and the peer's options share.
MODELS = {"llama_12m": {},
          "llama_134m": dict(vocab_size=32000, dim=768, num_layers=12, num_heads=12, num_kv_heads=4, ffn_dim=2048)}
MPI_AS_ROOT = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")


def narrowgauge_command(args, folder, steps, overrides=()):
    launcher = ["mpirun", "-np", str(args.ranks)] if args.ranks > 1 else []
    return [*launcher, ROOT / "narrowgauge", "train", ROOT / "configs/bench/llama_12m.yaml", f"job.run_dir={folder}/run",
            f"training.steps={steps}", f"training.num_threads={args.threads // args.ranks}",
            f"training.local_batch_size={BATCH_SIZE // args.ranks}", f"training.mixed_precision_param={args.dtype}",
            *(f"model.{key}={value}" for key, value in MODELS[args.model].items()), *overrides, *args.overrides]


def narrow_overrides(args):
    if args.float8:
        return [f"float8.recipe_name={args.float8}"]
    return [f"qat.scheme={args.qat}"] if args.qat else []


def run_narrowgauge(args, overrides=()):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(narrowgauge_command(args, folder, args.steps + WARMUP_STEPS, overrides), check=True,
                       stderr=subprocess.DEVNULL, env=MPI_AS_ROOT)
        lines = [json.loads(line) for line in open(f"{folder}/run/metrics.jsonl")]
    steps = [line for line in lines if "loss" in line]
    seconds = [line["step_seconds"] for line in steps][WARMUP_STEPS:]
    communication = [(line["communication_seconds"], line["exposed_communication_seconds"])
                     for line in steps[WARMUP_STEPS:] if "communication_seconds" in line]
    tokens = steps[-1]["tokens_seen"] // steps[-1]["step"]
    return dict(step_seconds=seconds, tokens_per_step=tokens, loss=steps[-1]["loss"],
                first_step_seconds=first_step_seconds(args, overrides),
                peak_memory_bytes=steps[-1]["peak_memory_bytes"], communication=communication)


def run_peer(args, compiled, emulate=False):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(args.ranks)] if args.ranks > 1 else []
    command = [sys.executable, *launcher, ROOT / "benchmarks/peers/train_step.py", f"--steps={args.steps}",
               f"--warmup={WARMUP_STEPS}", f"--threads={args.threads // args.ranks}", f"--dtype={args.dtype}",
               *(f"--{key.replace('_', '-')}={value}" for key, value in MODELS[args.model].items())]
    if args.float8:
        command += [f"--float8={args.float8}", *(["--emulate"] if emulate else [])]
    if args.qat:
        command.append(f"--qat={args.qat}")
    started = time.time()
    output = subprocess.run(command + (["--compile"] if compiled else []), check=True, capture_output=True, text=True)
    result = json.loads(output.stdout.splitlines()[-1])
    result["first_step_seconds"] = result.pop("first_step_at") - started
    return result


def peers(args):
    """{name: run}"""
    library = "torchao" if args.float8 or args.qat else "PyTorch"
    eager = f"{library} FSDP2" if args.ranks > 1 else f"{library} eager"
    compiled = "torchao compile" if args.float8 or args.qat else "torch.compile"
    found = {}
    for emulate in {"tensorwise": [False, True], "rowwise": [True]}.get(args.float8, [False]):
        way = ", emulated" if emulate else ""
        found[eager + way] = lambda a, emulate=emulate: run_peer(a, False, emulate)
        if args.compile:
            found[compiled + way] = lambda a, emulate=emulate: run_peer(a, True, emulate)
    return found


def first_step_seconds(args, overrides):
    """Process start to the end of a process that trains one step."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run(narrowgauge_command(args, folder, 1, overrides), check=True, stderr=subprocess.DEVNULL, env=MPI_AS_ROOT)
        return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    parser.add_argument("--float8", choices=["tensorwise", "rowwise"], help="train in fp8 on both sides")
    parser.add_argument("--qat", choices=["8da4w", "int4-weight-only"], help="fake quantization on both sides")
    parser.add_argument("--model", choices=MODELS, default="llama_12m")
    parser.add_argument("--json", help="write every figure here")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    args = parser.parse_args()
    if BATCH_SIZE % args.ranks or args.threads % args.ranks:
        parser.error(f"expected --ranks that divide the batch of {BATCH_SIZE} and --threads {args.threads}")
    contestants = {"narrowgauge": lambda a: run_narrowgauge(a, narrow_overrides(a)), **peers(args)}
    if args.float8 or args.qat:
        contestants["our bf16"] = run_narrowgauge
    results = {name: [] for name in contestants}
    for round_number in range(1, args.rounds + 1):
        for name, run in contestants.items():
            results[name].append(run(args))
            median = statistics.median(results[name][-1]["step_seconds"])
            print(f"round {round_number}/{args.rounds}  {name:26}  {1000 * median:7.1f} ms a step", file=sys.stderr)
    table = {}
    for name, runs in results.items():
        median = statistics.median(s for run in runs for s in run["step_seconds"])
        table[name] = dict(step_ms=1000 * median, tokens_per_second=runs[0]["tokens_per_step"] / median,
                           peak_memory_mib=max(run["peak_memory_bytes"] for run in runs) / 2**20,
                           first_step_seconds=statistics.median(run["first_step_seconds"] for run in runs))
    ours = table["narrowgauge"]
    print(f"{args.model}, {args.dtype}, {args.ranks} rank(s) of {args.threads // args.ranks} thread(s), median of {args.rounds} x {args.steps} steps")
    print(f"{'':26} {'ms/step':>8} {'tokens/s':>9} {'peak MiB':>9} {'first step':>11} {'ours / it':>10}")
    for name, row in table.items():
        ratio = ours["tokens_per_second"] / row["tokens_per_second"]
        print(f"{name:26} {row['step_ms']:8.1f} {row['tokens_per_second']:9.0f} {row['peak_memory_mib']:9.0f} "
              f"{row['first_step_seconds']:9.2f} s {ratio:10.2f}")
    if communication := [pair for run in results["narrowgauge"] for pair in run["communication"]]:
        busy, exposed = (statistics.median(pair[i] for pair in communication) for i in (0, 1))
        ours.update(communication_ms=1000 * busy, exposed_communication_ms=1000 * exposed)
        print(f"communication: {1000 * busy:.1f} ms a step, of which the model waited {1000 * exposed:.1f} ms: "
              f"{max(0.0, 1 - exposed / busy):.0%} hidden")
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(dict(arguments=vars(args), table=table, runs=results), indent=1))


if __name__ == "__main__":
    main()
