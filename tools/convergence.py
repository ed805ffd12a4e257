#!/usr/bin/env python3
"""Trains one configuration with each fp8 recipe and several seeds and prints how far the final validation loss is from
bf16's, beside how far seeds are from each other:

    tools/convergence.py --data tinyshakespeare.txt --output runs/convergence --seeds 3 --jobs 2 --threads 1

Works in a checkout and in a bundle (tools/bundle.sh), which holds it too. The final loss is the mean over the
validations of the last tenth of the steps. Runs that are done are not repeated; interrupted ones go on. Overrides after
-- go to every run: `-- training.steps=3000`. Exits 1 if a run fails, or a recipe's mean differs from bf16's by more than
--tolerance.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE if (HERE / "narrowgauge").exists() else HERE.parent
REFERENCE = "none"  # float8.recipe_name of the run in bf16
RECIPES = [REFERENCE, "tensorwise", "rowwise", "rowwise_with_gw_hp", "delayed", "blockwise", "mxfp8"]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=pathlib.Path, help="text to train on")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder of the runs")
    parser.add_argument("--config", type=pathlib.Path, default=ROOT / "configs/convergence/float8.yaml")
    parser.add_argument("--narrowgauge", type=pathlib.Path, default=ROOT / "narrowgauge", help="the program")
    parser.add_argument("--recipes", nargs="+", default=RECIPES, metavar="RECIPE")
    parser.add_argument("--seeds", type=int, default=3, help="1, 2, ... of each recipe")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--tolerance", type=float, default=0.25, help="per cent")
    parser.add_argument("--table-only", action="store_true", help="train nothing")
    parser.add_argument("overrides", nargs="*", metavar="-- section.key=value")
    return parser.parse_args()


def run_folder(arguments, recipe, seed):
    return arguments.output.resolve() / f"{recipe}-seed{seed}"


def train(arguments, recipe, seed):
    """Trains one run; returns an error text or None."""
    folder = run_folder(arguments, recipe, seed)
    folder.mkdir(parents=True, exist_ok=True)
    command = [arguments.narrowgauge.resolve(), "train", arguments.config.resolve(), f"job.run_dir={folder}",
               f"data.train=[{arguments.data.resolve()}]", f"training.seed={seed}", f"float8.recipe_name={recipe}",
               f"training.num_threads={arguments.threads}", *arguments.overrides]
    with open(folder / "log.txt", "a", encoding="utf-8") as log:
        status = subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                env=dict(os.environ, OMP_NUM_THREADS=str(arguments.threads))).returncode
    print(f"{recipe} seed {seed}: {'done' if status == 0 else f'exit code {status}'}", file=sys.stderr, flush=True)
    return None if status == 0 else f"{recipe} seed {seed}: exit code {status}, see {folder}/log.txt"


def final_loss(folder):
    """The mean validation loss over the last tenth of the steps, or None if the run is not there."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return None
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    last = max((line["step"] for line in lines if "loss" in line), default=0)
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line and line["step"] > 0.9 * last]
    return statistics.fmean(losses) if losses else None


def spread(values):
    return statistics.stdev(values) if len(values) > 1 else float("nan")


def print_table(arguments):
    """Returns the recipes beyond the tolerance."""
    losses = {recipe: [loss for seed in range(1, arguments.seeds + 1)
                       if (loss := final_loss(run_folder(arguments, recipe, seed))) is not None]
              for recipe in arguments.recipes}
    reference = losses.get(REFERENCE)
    beyond = []
    print("| recipe | validation loss by seed | mean | spread (standard deviation) | against bf16 |\n|---|---|---|---|---|")
    for recipe, values in losses.items():
        if not values:
            print(f"| {recipe} | none | | | |")
            continue
        mean = statistics.fmean(values)
        difference = ""
        if reference and recipe != REFERENCE and len(values) == len(reference):
            percent = 100 * (mean / statistics.fmean(reference) - 1)
            difference = f"{percent:+.3f} %"
            if abs(percent) > arguments.tolerance:
                beyond.append(f"{recipe}: {difference}, more than {arguments.tolerance} %")
        name = "bf16" if recipe == REFERENCE else recipe
        by_seed = " ".join(f"{value:.4f}" for value in values)
        print(f"| {name} | {by_seed} | {mean:.4f} | {spread(values):.4f} ({100 * spread(values) / mean:.3f} %) | "
              f"{difference} |")
    return beyond


def main():
    arguments = parse_arguments()
    for path in (arguments.data, arguments.config, arguments.narrowgauge):
        if not path.exists():
            sys.exit(f"convergence: there is no {path}")
    runs = [(recipe, seed) for seed in range(1, arguments.seeds + 1) for recipe in arguments.recipes]
    failures = []
    if not arguments.table_only:
        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
            failures = [error for error in pool.map(lambda run: train(arguments, *run), runs) if error]
    failures += print_table(arguments)
    print("\n".join(failures), file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
