"""Loss curves of the low-bit optimizers beside fp32 AdamW: one configuration, the same batches and initial values.

Usage: optimizer_convergence.py --config CONFIG.yaml --output FOLDER [--seeds 1 2 3] [--plot FILE.svg] [-- OVERRIDE ...]
Each run is in FOLDER/<seed>/<variant>; one that is complete is not repeated, one that was stopped goes on. Prints a table
and writes FOLDER/curves.json: {variant: {seed: {"loss": [...], "validation_loss": [[step, loss], ...]}}}.
--plot draws how far each variant's training loss is from fp32's, over the run.
"""
import argparse
import json
import math
import pathlib
import statistics
import subprocess

BF16 = ["training.dtype=bfloat16", "optimizer.bf16_stochastic_round=true"]
REFERENCE = "AdamW fp32"
VARIANTS = {
    REFERENCE: [],
    "AdamW bf16 states": ["optimizer.state_dtype=bfloat16"],
    "AdamW8bit": ["optimizer.name=AdamW8bit"],
    "AdamWFp8": ["optimizer.name=AdamWFp8"],
    "AdamW4bit": ["optimizer.name=AdamW4bit"],
    "AdamW bf16 stochastic": BF16,
    "AdamW bf16 nearest": BF16[:1],
    "AdamW8bit bf16 stochastic": ["optimizer.name=AdamW8bit", *BF16],
    "Muon": ["optimizer.name=Muon"],
}
TICK = 0.05  # of the loss
WINDOW = 100  # steps that a point of the plot is the mean of
COLORS = ["#444444", "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#e377c2", "#17becf"]


def curve(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return dict(loss=[line["loss"] for line in lines if "loss" in line],
                validation_loss=[[line["step"], line["validation_loss"]] for line in lines if "validation_loss" in line])


def print_table(curves):
    def final(variant):
        return [run["validation_loss"][-1][1] for run in curves[variant].values()]

    reference = statistics.fmean(final(REFERENCE)) if REFERENCE in curves else None
    print("| | last validation loss by seed | mean | against fp32 | mean of the last 50 losses |\n|---|---|---|---|---|")
    for name, runs in curves.items():
        values, last = final(name), [loss for run in runs.values() for loss in run["loss"][-50:]]
        difference = f"{100 * (statistics.fmean(values) / reference - 1):+.2f} %" if reference else ""
        print(f"| {name} | {' '.join(f'{value:.4f}' for value in values)} | {statistics.fmean(values):.4f} | "
              f"{difference} | {statistics.fmean(last):.4f} |")


def smoothed(runs):
    """Means over seeds and over WINDOW steps, one for each half window: [(step, loss), ...]."""
    losses = [statistics.fmean(of_step) for of_step in zip(*(run["loss"] for run in runs.values()))]
    return [(end - WINDOW / 2, statistics.fmean(losses[end - WINDOW:end]))
            for end in range(WINDOW, len(losses) + 1, WINDOW // 2)]


def draw(curves, path):
    """Differences to the reference as one SVG with its legend."""
    reference = smoothed(curves[REFERENCE])
    lines = {name: [(step, loss - other) for (step, loss), (_, other) in zip(smoothed(runs), reference)]
             for name, runs in curves.items() if name != REFERENCE}
    width, height, left, top = 900, 420, 70, 30
    plot_width, plot_height = 560, height - top - 50
    values = [0, *(value for line in lines.values() for _, value in line)]
    low, high = math.floor(min(values) / TICK), math.ceil(max(values) / TICK)  # in ticks
    last = reference[-1][0]

    def x(step):
        return left + plot_width * step / last

    def y(value):
        return top + plot_height * (high - value / TICK) / (high - low)

    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
           f'font-size="12"><rect width="100%" height="100%" fill="white"/>'
           f'<text x="{left}" y="18">training loss minus that of {REFERENCE} (means of {WINDOW} steps)</text>']
    for tick in range(low, high + 1):
        at = y(tick * TICK)
        svg.append(f'<line x1="{left}" x2="{left + plot_width}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>'
                   f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{tick * TICK:+.2f}</text>')
    for step in range(0, int(last) + 1, max(1, round(last / 5))):
        svg.append(f'<text x="{x(step):.1f}" y="{top + plot_height + 18}" text-anchor="middle">{step:.0f}</text>')
    svg.append(f'<line x1="{left}" x2="{left + plot_width}" y1="{y(0):.1f}" y2="{y(0):.1f}" stroke="{COLORS[0]}"/>')
    svg.append(f'<text x="{left + plot_width / 2}" y="{height - 8}" text-anchor="middle">step</text>')
    for index, (name, line) in enumerate(lines.items(), start=1):
        color, legend = COLORS[index % len(COLORS)], top + 20 * index
        points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in line)
        svg.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"/>'
                   f'<line x1="{left + plot_width + 20}" x2="{left + plot_width + 44}" y1="{legend}" y2="{legend}" '
                   f'stroke="{color}" stroke-width="3"/><text x="{left + plot_width + 50}" y="{legend + 4}">{name}</text>')
    path.write_text("\n".join(svg) + "\n</svg>\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="./narrowgauge")
    parser.add_argument("--config", required=True)
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[42])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--plot", type=pathlib.Path)
    parser.add_argument("overrides", nargs="*", metavar="-- section.key=value")
    args = parser.parse_args()
    curves = {name: {} for name in args.only}
    for seed in args.seeds:
        for name in args.only:
            folder = args.output / str(seed) / name.replace(" ", "_")
            subprocess.run([args.binary, "train", args.config, f"job.run_dir={folder}", "export.enable=false",
                            f"training.seed={seed}", *args.overrides, *VARIANTS[name]], check=True)
            curves[name][seed] = curve(folder)
            (args.output / "curves.json").write_text(json.dumps(curves))
    print_table(curves)
    if args.plot:
        draw(curves, args.plot)


if __name__ == "__main__":
    main()
