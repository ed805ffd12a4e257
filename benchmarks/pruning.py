"""Perplexity after each way of pruning, beside the model as it was trained.

Usage (from the repository root, after ./narrowgauge has built):
    tools/python.sh benchmarks/pruning.py --model DIR --calibration FILES --data FILES
        [--pattern 0.5 ...] [--method NAME ...] [--seq-len 256] [--samples 128]

One line for each pattern and method: loss, perplexity, divergence from the unpruned model, how often both prefer one token.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATTERNS = ["0.5", "4:8", "2:4"]
METHODS = ["magnitude", "wanda", "sparsegpt"]


def narrowgauge(args, *arguments):
    tokenizer = ["--tokenizer", args.tokenizer] if args.tokenizer else []
    done = subprocess.run([args.narrowgauge, *map(str, arguments), *tokenizer], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, env=dict(os.environ))
    if done.returncode != 0:
        sys.exit(done.stderr)
    return done.stdout


def prune(args, pattern, method, output):
    started = time.perf_counter()
    narrowgauge(args, "prune", "--model", args.model, "--method", method, "--pattern", pattern, "--output", output,
                "--seq-len", args.seq_len, "--samples", args.samples, "--calibration", args.calibration)
    return time.perf_counter() - started


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokenizer", help="default: the model's")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--narrowgauge", default=ROOT / "narrowgauge", help="the program, where it is built already")
    parser.add_argument("--pattern", action="append", help="default: " + " ".join(PATTERNS))
    parser.add_argument("--method", action="append", help="default: " + " ".join(METHODS))
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--samples", type=int, default=128)
    return parser.parse_args()


def main():
    args = parse_arguments()
    methods = args.method or METHODS
    print(f"{'pattern':10} {'method':10} {'loss':>8} {'perplexity':>10} {'KL':>8} {'same top1':>9} {'seconds':>8}")
    with tempfile.TemporaryDirectory() as temporary:
        for pattern in args.pattern or PATTERNS:
            outputs = [pathlib.Path(temporary) / f"{pattern.replace(':', '-')}-{method}" for method in methods]
            seconds = [prune(args, pattern, method, output) for method, output in zip(methods, outputs)]
            lines = narrowgauge(args, "eval", "--model", args.model, "--compare", ",".join(map(str, outputs)), "--data", args.data,
                                "--seq-len", args.seq_len, "--json").splitlines()
            base, *others = json.loads(lines[-1])["models"]
            print(f"{'as trained':21} {base['loss']:8.4f} {base['perplexity']:10.4f}")
            for method, row, spent in zip(methods, others, seconds):
                print(f"{pattern:10} {method:10} {row['loss']:8.4f} {row['perplexity']:10.4f} {row['kl_mean']:8.5f} "
                      f"{100 * row['same_top1']:7.2f} % {spent:8.1f}", flush=True)


if __name__ == "__main__":
    main()
