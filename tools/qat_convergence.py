#!/usr/bin/env python3
"""How much of what quantization costs does training for it give back?

    tools/qat_convergence.py --data corpus.jsonl --output runs/qat --steps 3000 --tune-steps 600

1. base   trains the configuration in bf16 for --steps.
2. tuned  goes on with the base in bf16 for --tune-steps at --tune-lr: what any further training gives.
3. QAT    goes on with the base for as long, with the same data and learning rates, with fake quantization.
4. PTQ    the tuned model, rounded to nearest.

Each scheme's row has the validation losses of tuned, PTQ and QAT (nats a token) and the share of the gap that QAT closes,
(PTQ - QAT) / (PTQ - tuned). A validation of a run with fake quantization is that of the quantized model, bit for bit.
Works in a checkout and in a bundle (tools/bundle.sh). Runs that are done are not repeated; interrupted ones go on.
Overrides after -- go to every run. Exits 1 if a run fails.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE if (HERE / "narrowgauge").exists() else HERE.parent
# Title, and overrides of section qat.
SCHEMES = {
    "8da4w-g32": ["qat.scheme=8da4w", "qat.group_size=32"],
    "int4-weight-only-g128": ["qat.scheme=int4-weight-only", "qat.group_size=128"],
    "int4-weight-only-row": ["qat.scheme=intx-weight-only", "qat.bits=4"],
    "int3-weight-only-g32": ["qat.scheme=intx-weight-only", "qat.bits=3", "qat.group_size=32"],
    "int2-weight-only-g32": ["qat.scheme=intx-weight-only", "qat.bits=2", "qat.group_size=32"],
    "gguf-q4_0": ["qat.scheme=gguf-q4_0"],
    "mxfp4": ["qat.scheme=mxfp4"],
    "nvfp4": ["qat.scheme=nvfp4"],
}
DEFAULT = ["8da4w-g32", "int4-weight-only-g128", "int3-weight-only-g32", "int2-weight-only-g32"]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=pathlib.Path, help="text to train on")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder of the runs")
    parser.add_argument("--config", type=pathlib.Path, default=ROOT / "configs/convergence/qat.yaml")
    parser.add_argument("--narrowgauge", type=pathlib.Path, default=ROOT / "narrowgauge", help="the program")
    parser.add_argument("--schemes", nargs="+", default=DEFAULT, choices=list(SCHEMES), metavar="SCHEME")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--tune-steps", type=int, default=600)
    parser.add_argument("--tune-lr", type=float, default=3e-4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("overrides", nargs="*", metavar="-- section.key=value")
    return parser.parse_args()


class Experiment:
    def __init__(self, arguments):
        self.arguments = arguments

    def folder(self, name):
        return self.arguments.output.resolve() / name

    def lines(self, name):
        path = self.folder(name) / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def loss(self, name):
        """The last validation loss."""
        losses = [line["validation_loss"] for line in self.lines(name) if "validation_loss" in line]
        return losses[-1] if losses else None

    def train(self, name, steps, overrides):
        folder = self.folder(name)
        if (folder / "hf").exists() and self.loss(name) is not None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        command = [self.arguments.narrowgauge.resolve(), "train", self.arguments.config.resolve(), f"job.run_dir={folder}",
                   f"data.train=[{self.arguments.data.resolve()}]", f"training.steps={steps}", f"validation.interval={steps}",
                   f"training.num_threads={self.arguments.threads}", *overrides, *self.arguments.overrides]
        with open(folder / "log.txt", "a", encoding="utf-8") as log:
            status = subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                    env=dict(os.environ, OMP_NUM_THREADS=str(self.arguments.threads))).returncode
        if status != 0:
            sys.exit(f"{name}: exit code {status}, see {folder}/log.txt")
        print(f"{name}: validation loss {self.loss(name):.4f}", file=sys.stderr, flush=True)

    def tune(self, name, overrides, start="base"):
        self.train(name, self.arguments.tune_steps,
                   [f"model.initial_load_path={self.folder(start) / 'hf'}", f"optimizer.lr={self.arguments.tune_lr}",
                    "lr_scheduler.warmup_steps=20", *overrides])

    def round_to_nearest(self, name, overrides):
        """One step that moves nothing, for its validation."""
        self.train(name, 1, [f"model.initial_load_path={self.folder('tuned') / 'hf'}", "optimizer.lr=1.0e-30",
                             "optimizer.weight_decay=0", "lr_scheduler.warmup_steps=0", *overrides])


def without_shape(config, folder):
    """A copy of the configuration for runs that begin with a model, which brings its shape."""
    text = config.read_text()
    begin = text.index("model:")
    end = text.index("}", begin) + 1
    path = folder / "tune.yaml"
    path.write_text(text[:begin] + text[end:].lstrip("\n"))
    return path


def main():
    arguments = parse_arguments()
    for path in (arguments.data, arguments.config, arguments.narrowgauge):
        if not path.exists():
            sys.exit(f"qat_convergence: there is no {path}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    experiment = Experiment(arguments)
    experiment.train("base", arguments.steps, [])
    arguments.config = without_shape(arguments.config, arguments.output)
    experiment.tune("tuned", [])
    rows = []
    for scheme in arguments.schemes:
        experiment.round_to_nearest(f"{scheme}-ptq", SCHEMES[scheme])
        experiment.tune(f"{scheme}-qat", SCHEMES[scheme])
        rows.append((scheme, experiment.loss("tuned"), experiment.loss(f"{scheme}-ptq"), experiment.loss(f"{scheme}-qat")))
    print(f"base after {arguments.steps} steps: {experiment.loss('base'):.4f}; {arguments.tune_steps} more")
    print("| scheme | bf16 | PTQ | QAT | gap of PTQ | closed by QAT |\n|---|---|---|---|---|---|")
    for scheme, tuned, ptq, qat in rows:
        gap = ptq - tuned
        closed = f"{100 * (ptq - qat) / gap:.0f} %" if gap > 0 else "no gap"
        print(f"| {scheme} | {tuned:.4f} | {ptq:.4f} | {qat:.4f} | {gap:.4f} | {closed} |")


if __name__ == "__main__":
    main()
