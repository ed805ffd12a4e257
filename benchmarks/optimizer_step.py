"""Optimizer step over the 12.6 M-parameter set of shapes beside torch's fused AdamW and torchao, in turn.

Usage: optimizer_step.py [--rounds N] [--steps N] [--threads N] [--no-torchao] [--json FILE]; build
//benchmarks:optimizer_step first. A row is the median over rounds of a run's median; ratio: its time over that of
torch's fused AdamW of the same run.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
OURS = ["AdamW", "AdamW8bit", "AdamW4bit", "AdamWFp8", "AdamW-bf16-states", "AdamW8bit-bf16-SR"]
TORCHAO = ["AdamW8bit", "AdamW4bit", "AdamWFp8"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--binary", default="bazel-bin/benchmarks/optimizer_step")
    parser.add_argument("--no-torchao", action="store_true")
    parser.add_argument("--json")
    args = parser.parse_args()
    peer = [sys.executable, HERE / "peers/optimizer_step.py"]
    contenders = {"torch AdamW fused": [*peer, "torch-fused"]}
    contenders |= {f"narrowgauge {name}": [args.binary, name] for name in OURS}
    if not args.no_torchao:
        contenders |= {f"torchao {name}": [*peer, name] for name in TORCHAO}
    medians, state = {name: [] for name in contenders}, {}
    environment = dict(os.environ, OMP_NUM_THREADS=str(args.threads))
    for index in range(args.rounds):
        for name, command in contenders.items():
            if name.startswith("torchao") and index > 0:
                continue  # compiles for half a minute
            output = subprocess.run([*command, str(args.threads), str(args.steps)], stdout=subprocess.PIPE, check=True,
                                    env=environment, text=True).stdout
            result = json.loads(output.splitlines()[-1])
            medians[name].append(statistics.median(result["step_seconds"][args.steps // 4:]))
            state[name] = result.get("state_bytes_per_parameter")
    base = statistics.median(medians["torch AdamW fused"])
    rows = {name: dict(ms=statistics.median(values) * 1e3, ratio=statistics.median(values) / base,
                       state_bytes_per_parameter=state[name]) for name, values in medians.items()}
    print("| | ms a step | ratio | state bytes a parameter |\n|---|---|---|---|")
    for name, row in rows.items():
        size = row["state_bytes_per_parameter"]
        print(f"| {name} | {row['ms']:.2f} | {row['ratio']:.2f} | {'' if size is None else f'{size:.3f}'} |")
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
