#!/usr/bin/env python3
"""Trains one configuration in several variants and with several seeds, and prints how far the final validation loss is
from the reference's, beside how far seeds are from each other:

    tools/convergence.py float8 --data tinyshakespeare.txt --output runs/convergence --seeds 3 --jobs 2 --threads 1

float8: every recipe against bf16. sparsity: 2:4 throughout, and for 70 % of the steps, of all linears and of the
feed-forward part, against dense; 2:4 throughout with float8.
(benchmarks/optimizer_convergence.py does the same for optimizers.)

Works in a checkout and in a bundle (tools/bundle.sh), which holds it too. The final loss is the mean over the
validations of the last tenth of the steps. Runs that are done are not repeated; interrupted ones go on. Overrides after
-- go to every run: `-- training.steps=3000`. Exits 1 if a run fails, or the mean of a variant that is meant to match the
reference is worse than that by more than --tolerance.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE if (HERE / "narrowgauge").exists() else HERE.parent
SPARSE = ["sparsity.kind=semi_structured"]
# Of each family: variant -> its overrides; fields such as {0.7} are shares of training.steps. The first one is the
# reference; those of NOT_EXPECTED_TO_MATCH are there to be seen.
FAMILIES = {
    "float8": {"bf16": ["float8.recipe_name=none"]} | {
        recipe: [f"float8.recipe_name={recipe}"]
        for recipe in ("tensorwise", "rowwise", "rowwise_with_gw_hp", "delayed", "blockwise", "mxfp8")},
    "sparsity": {
        "dense": ["sparsity.kind=none"],
        "70 % sparse, then dense": [*SPARSE, "sparsity.end_step={0.7}"],
        "70 % sparse feed-forward, then dense": [*SPARSE, "sparsity.end_step={0.7}", "sparsity.filter_fqns=[lm_head,self_attn]"],
        "sparse": SPARSE,
        "sparse feed-forward": [*SPARSE, "sparsity.filter_fqns=[lm_head,self_attn]"],
        "sparse, SR-STE": [*SPARSE, "sparsity.sr_ste_decay=2.0e-4"],
        "sparse, greedy masks": [*SPARSE, "sparsity.algorithm=largest_abs_values_greedy"],
        "sparse, tensorwise": [*SPARSE, "float8.recipe_name=tensorwise"],
        "sparse, rowwise": [*SPARSE, "float8.recipe_name=rowwise"],
    },
}
NOT_EXPECTED_TO_MATCH = {"sparse", "sparse feed-forward", "sparse, SR-STE", "sparse, greedy masks", "sparse, tensorwise",
                         "sparse, rowwise"}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--data", required=True, type=pathlib.Path, help="text to train on")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder of the runs")
    parser.add_argument("--config", type=pathlib.Path, default=ROOT / "configs/convergence/llama_3m.yaml")
    parser.add_argument("--narrowgauge", type=pathlib.Path, default=ROOT / "narrowgauge", help="the program")
    parser.add_argument("--variants", nargs="+", metavar="VARIANT", help="of the family; all unless told")
    parser.add_argument("--seeds", type=int, default=3, help="1, 2, ... of each variant")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--tolerance", type=float, default=0.25, help="per cent")
    parser.add_argument("--table-only", action="store_true", help="train nothing")
    parser.add_argument("overrides", nargs="*", metavar="-- section.key=value")
    arguments = parser.parse_intermixed_args()
    family = FAMILIES[arguments.family]
    arguments.reference = next(iter(family))
    arguments.variants = arguments.variants or list(family)
    if unknown := [variant for variant in arguments.variants if variant not in family]:
        parser.error(f"{arguments.family} has no variant {unknown[0]}; it has {', '.join(family)}")
    return arguments


def run_folder(arguments, variant, seed):
    return arguments.output.resolve() / f"{re.sub('[^a-zA-Z0-9]+', '_', variant)}-seed{seed}"


def number_of_steps(arguments):
    """training.steps of the runs: the last override, else the configuration's."""
    texts = [*arguments.overrides, "training.steps=" + re.search(
        r"^training:.*?\bsteps:\s*(\d+)", arguments.config.read_text(), re.DOTALL | re.MULTILINE).group(1)]
    return int(next(text for text in texts if text.startswith("training.steps=")).split("=")[1])


def overrides_of(arguments, variant):
    steps = number_of_steps(arguments)
    return [re.sub(r"\{([0-9.]+)\}", lambda share: str(round(float(share[1]) * steps)), text)
            for text in FAMILIES[arguments.family][variant]]


def train(arguments, variant, seed):
    """Trains one run; returns an error text or None."""
    folder = run_folder(arguments, variant, seed)
    folder.mkdir(parents=True, exist_ok=True)
    command = [arguments.narrowgauge.resolve(), "train", arguments.config.resolve(), f"job.run_dir={folder}",
               f"data.train=[{arguments.data.resolve()}]", f"training.seed={seed}",
               f"training.num_threads={arguments.threads}", *overrides_of(arguments, variant), *arguments.overrides]
    with open(folder / "log.txt", "a", encoding="utf-8") as log:
        status = subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                env=dict(os.environ, OMP_NUM_THREADS=str(arguments.threads))).returncode
    print(f"{variant} seed {seed}: {'done' if status == 0 else f'exit code {status}'}", file=sys.stderr, flush=True)
    return None if status == 0 else f"{variant} seed {seed}: exit code {status}, see {folder}/log.txt"


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
    """Returns the variants beyond the tolerance."""
    losses = {variant: [loss for seed in range(1, arguments.seeds + 1)
                        if (loss := final_loss(run_folder(arguments, variant, seed))) is not None]
              for variant in arguments.variants}
    reference = losses.get(arguments.reference)
    beyond = []
    print(f"| variant | validation loss by seed | mean | spread (standard deviation) | against {arguments.reference} |\n"
          "|---|---|---|---|---|")
    for variant, values in losses.items():
        if not values:
            print(f"| {variant} | none | | | |")
            continue
        mean = statistics.fmean(values)
        difference = ""
        if reference and variant != arguments.reference and len(values) == len(reference):
            percent = 100 * (mean / statistics.fmean(reference) - 1)
            difference = f"{percent:+.3f} %"
            if percent > arguments.tolerance and variant not in NOT_EXPECTED_TO_MATCH:
                beyond.append(f"{variant}: {difference}, more than {arguments.tolerance} %")
        by_seed = " ".join(f"{value:.4f}" for value in values)
        print(f"| {variant} | {by_seed} | {mean:.4f} | {spread(values):.4f} ({100 * spread(values) / mean:.3f} %) | "
              f"{difference} |")
    return beyond


def main():
    arguments = parse_arguments()
    for path in (arguments.data, arguments.config, arguments.narrowgauge):
        if not path.exists():
            sys.exit(f"convergence: there is no {path}")
    runs = [(variant, seed) for seed in range(1, arguments.seeds + 1) for variant in arguments.variants]
    failures = []
    if not arguments.table_only:
        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
            failures = [error for error in pool.map(lambda run: train(arguments, *run), runs) if error]
    failures += print_table(arguments)
    print("\n".join(failures), file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
