"""Loss curves of the low-bit optimizers beside fp32 AdamW on one configuration and one order of data.

Usage: optimizer_convergence.py --binary narrowgauge --config CONFIG.yaml --output FOLDER [OVERRIDE ...]
Each variant is one run in FOLDER/<variant>; a run that is complete is not repeated, one that was stopped goes on.
Prints a table and writes FOLDER/curves.json: {variant: {"loss": [...], "validation_loss": [[step, loss], ...]}}.
"""
import argparse
import json
import pathlib
import subprocess

BF16 = ["training.dtype=bfloat16", "optimizer.bf16_stochastic_round=true"]
VARIANTS = {
    "AdamW fp32": [],
    "AdamW bf16 states": ["optimizer.state_dtype=bfloat16"],
    "AdamW8bit": ["optimizer.name=AdamW8bit"],
    "AdamWFp8": ["optimizer.name=AdamWFp8"],
    "AdamW4bit": ["optimizer.name=AdamW4bit"],
    "AdamW bf16 stochastic": BF16,
    "AdamW bf16 nearest": BF16[:1],
    "AdamW8bit bf16 stochastic": ["optimizer.name=AdamW8bit", *BF16],
    "Muon": ["optimizer.name=Muon"],
}


def curve(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return dict(loss=[line["loss"] for line in lines if "loss" in line],
                validation_loss=[[line["step"], line["validation_loss"]] for line in lines if "validation_loss" in line],
                step_seconds=[line["step_seconds"] for line in lines if "loss" in line],
                peak_memory_bytes=max(line["peak_memory_bytes"] for line in lines if "loss" in line))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default="./narrowgauge")
    parser.add_argument("--config", required=True)
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    curves = {}
    for name in args.only:
        folder = args.output / name.replace(" ", "_")
        subprocess.run([args.binary, "train", args.config, f"job.run_dir={folder}", "export.enable=false",
                        *args.overrides, *VARIANTS[name]], check=True)
        curves[name] = curve(folder)
        (args.output / "curves.json").write_text(json.dumps(curves))
    print("| | last validation loss | mean of the last 50 losses | peak MiB | ms a step |\n|---|---|---|---|---|")
    for name, values in curves.items():
        last = values["loss"][-50:]
        validation = values["validation_loss"][-1][1] if values["validation_loss"] else float("nan")
        seconds = sorted(values["step_seconds"])[len(values["step_seconds"]) // 2]
        print(f"| {name} | {validation:.4f} | {sum(last) / len(last):.4f} | "
              f"{values['peak_memory_bytes'] / 2**20:.0f} | {seconds * 1e3:.0f} |")


if __name__ == "__main__":
    main()
