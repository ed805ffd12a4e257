"""Perplexity after each post-training method, beside the model as it was trained.

Usage (from the repository root, after ./narrowgauge has built):
    tools/python.sh benchmarks/post_training.py --model DIR --calibration FILES --data FILES
        [--scheme NAME[:BITS[:GROUP]] ...] [--method NAME ...] [--seq-len 256] [--samples 128]

One line for each scheme and method: loss, perplexity, the share of round-to-nearest's loss of quality that the method wins
back, divergence from the unquantized model and how often both prefer one token.
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
SCHEMES = ["int4-weight-only::128", "int8-dynamic-act-int4-weight::32", "intx-weight-only:4:64", "intx-weight-only:3:64"]
METHODS = ["rtn", "hqq", "gptq", "awq"]


def narrowgauge(args, *arguments):
    done = subprocess.run([args.narrowgauge, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=dict(os.environ))
    if done.returncode != 0:
        sys.exit(done.stderr)
    return done.stdout


def quantize(args, scheme, method, output):
    name, _, rest = scheme.partition(":")
    bits, _, group = rest.partition(":")
    started = time.perf_counter()
    narrowgauge(args, "quantize", "--model", args.model, "--scheme", name, "--method", method, "--output", output,
                "--seq-len", args.seq_len, "--samples", args.samples, "--calibration", args.calibration,
                *(["--bits", bits] if bits else []), *(["--group-size", group] if group else []))
    return time.perf_counter() - started


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--narrowgauge", default=ROOT / "narrowgauge", help="the program, where it is built already")
    parser.add_argument("--scheme", action="append", help="default: " + " ".join(SCHEMES))
    parser.add_argument("--method", action="append", help="default: " + " ".join(METHODS))
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--samples", type=int, default=128)
    return parser.parse_args()


def main():
    args = parse_arguments()
    methods = args.method or METHODS
    print(f"{'scheme':36} {'method':12} {'loss':>8} {'perplexity':>10} {'won back':>8} {'KL':>8} {'same top1':>9} {'seconds':>8}")
    with tempfile.TemporaryDirectory() as temporary:
        for scheme in args.scheme or SCHEMES:
            outputs = [pathlib.Path(temporary) / f"{scheme.replace(':', '-')}-{method}" for method in methods]
            seconds = [quantize(args, scheme, method, output) for method, output in zip(methods, outputs)]
            lines = narrowgauge(args, "eval", "--model", args.model, "--compare", ",".join(map(str, outputs)), "--data", args.data,
                                "--seq-len", args.seq_len, "--json").splitlines()
            base, *others = json.loads(lines[-1])["models"]
            print(f"{'as trained':36} {'':12} {base['loss']:8.4f} {base['perplexity']:10.4f}")
            gap = others[0]["loss"] - base["loss"]
            for method, row, spent in zip(methods, others, seconds):
                won = 100 * (others[0]["loss"] - row["loss"]) / gap
                print(f"{scheme:36} {method:12} {row['loss']:8.4f} {row['perplexity']:10.4f} {won:6.0f} % {row['kl_mean']:8.5f} "
                      f"{100 * row['same_top1']:7.2f} % {spent:8.1f}", flush=True)


if __name__ == "__main__":
    main()
