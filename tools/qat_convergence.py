#!/usr/bin/env python3
"""How much of what quantization costs does training for it give back?

    tools/qat_convergence.py --data corpus.jsonl --output runs/qat --steps 3000 --tune-steps 1500 \\
        --recipes plain learned distill=0.5 learned+distill=0.5 --jobs 4

1. base   trains the configuration in bf16 for --steps.
2. bf16   goes on with the base in bf16 for --tune-steps: what any further training gives.
3. QAT    goes on with the base for as long, with the same data and learning rates, with fake quantization.
4. PTQ    the bf16 model of 2, rounded to nearest.

A recipe of 3 is words joined by +:
  plain        fake quantization from the first step
  learned      ranges that train (qat.learned_ranges); learned=X with X of the weights' learning rate
  distill=W    distillation from the model it starts with, share W of the loss; distill=W@T at temperature T
  after=N      fake quantization after N steps (qat.fake_quant_after_n_steps)
  lr=X         learning rate in place of --tune-lr, in 2 too
  from-tuned   2 and 3 start from a bf16 model tuned once already at --tune-lr: quantizing what is finished
Whatever a recipe changes but fake quantization, ranges and loss, its own bf16 run of 2 changes, too.

Each line of the table has the validation losses of bf16, PTQ and QAT (nats a token), the share of the gap that QAT closes,
(PTQ - QAT) / (PTQ - bf16), and the accuracy of the three on --questions of the held-out text: which of four continuations is
the true one (HellaSwag's form and its scoring by length). A validation of a run with fake quantization is that of the
quantized model, bit for bit. The last 5 % of the lines of --data are held out.
Works in a checkout and in a bundle (tools/bundle.sh). Runs that are done are not repeated; interrupted ones go on.
Overrides after -- go to every run. Exits 1 if a run fails.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import random
import re
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
HELD_OUT = 0.05


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=pathlib.Path, help="text to train on, .jsonl or lines")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder of the runs")
    parser.add_argument("--config", type=pathlib.Path, default=ROOT / "configs/convergence/qat.yaml")
    parser.add_argument("--narrowgauge", type=pathlib.Path, default=ROOT / "narrowgauge", help="the program")
    parser.add_argument("--schemes", nargs="+", default=DEFAULT, choices=list(SCHEMES), metavar="SCHEME")
    parser.add_argument("--recipes", nargs="+", default=["plain"], metavar="RECIPE")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--tune-steps", type=int, default=600)
    parser.add_argument("--tune-lr", type=float, default=3e-4)
    parser.add_argument("--questions", type=int, default=0, help="of the held-out text for accuracy; 0: none")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("overrides", nargs="*", metavar="-- section.key=value")
    return parser.parse_args()


class Recipe:
    """What a run of step 3 does, and which run of step 2 it is compared with."""

    def __init__(self, text, arguments):
        self.text = text
        self.learning_rate = arguments.tune_lr
        self.start = "base"
        self.overrides = []
        for word in text.split("+"):
            name, _, value = word.partition("=")
            if name == "learned":
                self.overrides += ["qat.learned_ranges=true"]
                if value:
                    self.overrides += [f"optimizer.parameter_groups=['*.weight_* lr_scale={float(value)}']"]
            elif name == "distill":
                weight, _, temperature = value.partition("@")
                self.overrides += [f"distillation.weight={float(weight)}", f"distillation.temperature={float(temperature or 1)}"]
            elif name == "after":
                self.overrides += [f"qat.fake_quant_after_n_steps={int(value)}"]
            elif name == "lr":
                self.learning_rate = float(value)
            elif name == "from-tuned":
                self.start = "tuned"
            elif name != "plain":
                sys.exit(f"qat_convergence: expected a recipe of plain, learned, learned=X, distill=W, after=N, lr=X and from-tuned, got {text}")
        self.reference = "tuned" if (self.start, self.learning_rate) == ("base", arguments.tune_lr) else f"tuned-{self.start}-{self.learning_rate:g}"


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

    def call(self, arguments, log):
        environment = dict(os.environ, OMP_NUM_THREADS=str(self.arguments.threads))
        return subprocess.run([self.arguments.narrowgauge.resolve(), *arguments], stdout=subprocess.PIPE, stderr=log,
                              stdin=subprocess.DEVNULL, env=environment, text=True)

    def train(self, name, config, steps, overrides):
        folder = self.folder(name)
        if (folder / "hf").exists() and self.loss(name) is not None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "log.txt", "a", encoding="utf-8") as log:
            status = self.call(["train", config.resolve(), f"job.run_dir={folder}", f"data.train=[{self.folder('train.jsonl')}]",
                                f"data.validation=[{self.folder('held_out.jsonl')}]", "data.validation_fraction=0",
                                f"training.steps={steps}", f"validation.interval={steps}",
                                f"training.num_threads={self.arguments.threads}", *overrides, *self.arguments.overrides],
                               log).returncode
        if status != 0:
            raise RuntimeError(f"{name}: exit code {status}, see {folder}/log.txt")
        print(f"{name}: validation loss {self.loss(name):.4f}", file=sys.stderr, flush=True)

    def base(self):
        self.train("base", self.arguments.config, self.arguments.steps, [])

    def tune(self, name, overrides, start, learning_rate):
        self.train(name, self.folder("tune.yaml"), self.arguments.tune_steps,
                   [f"model.initial_load_path={self.folder(start) / 'hf'}", f"optimizer.lr={learning_rate}",
                    "lr_scheduler.warmup_steps=20", *overrides])

    def round_to_nearest(self, name, overrides, reference):
        """One step that moves nothing, for its validation."""
        self.train(name, self.folder("tune.yaml"), 1,
                   [f"model.initial_load_path={self.folder(reference) / 'hf'}", "optimizer.lr=1.0e-30",
                    "optimizer.weight_decay=0", "lr_scheduler.warmup_steps=0", *overrides])

    def accuracy(self, name, part):
        """acc_norm on the questions, of run/hf or run/quantized; remembered beside the run."""
        path = self.folder(name) / f"accuracy-{part}.json"
        if not path.exists():
            with open(self.folder(name) / "log.txt", "a", encoding="utf-8") as log:
                process = self.call(["eval", "--model", self.folder(name) / part, "--tokenizer", "bytes", "--tasks", "hellaswag",
                                     "--data", self.folder("questions.txt"), "--json"], log)
            if process.returncode != 0:
                raise RuntimeError(f"{name}: eval ended with exit code {process.returncode}, see {self.folder(name)}/log.txt")
            path.write_text(process.stdout)
        return json.loads(path.read_text().splitlines()[-1])["acc_norm"]

    def together(self, calls):
        """Several calls side by side; the first failure ends the program."""
        with concurrent.futures.ThreadPoolExecutor(self.arguments.jobs) as pool:
            futures = [pool.submit(*call) for call in calls]
            for future in futures:
                try:
                    future.result()
                except RuntimeError as error:
                    for other in futures:
                        other.cancel()
                    sys.exit(f"qat_convergence: {error}")


def text_of(line):
    try:
        return json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        return line


def split(data, folder):
    """Lines to train on and lines held out, as .jsonl."""
    lines = [line for line in data.read_text(encoding="utf-8").splitlines() if line.strip()]
    first = len(lines) - max(1, int(HELD_OUT * len(lines)))
    for name, part in (("train.jsonl", lines[:first]), ("held_out.jsonl", lines[first:])):
        path = folder / name
        if not path.exists():
            path.write_text("".join(json.dumps({"text": text_of(line)}) + "\n" for line in part), encoding="utf-8")


def write_questions(held_out, path, count):
    """Items of llama.cpp's HellaSwag form: a context of held-out text, the true continuation and three from elsewhere in it."""
    words = [word for line in held_out.read_text(encoding="utf-8").splitlines()
             for word in re.sub(r"\s+", " ", json.loads(line)["text"]).strip().split(" ")]
    choose = random.Random(0)
    context, ending = 30, 8
    if len(words) < 10 * (context + ending):
        sys.exit(f"qat_convergence: {held_out} is too short to ask questions of")

    def place():
        return choose.randrange(len(words) - context - ending)

    items = []
    while len(items) < count:
        at = place()
        endings = [" ".join(words[begin:begin + ending]) for begin in (at + context, place(), place(), place())]
        if len(set(endings)) < 4:
            continue
        order = choose.sample(range(4), 4)
        items.append("\n".join([" ".join(words[at:at + context]), str(order.index(0)), *(endings[i] for i in order)]) + "\n")
    path.write_text("".join(items), encoding="utf-8")


def write_without_shape(config, path):
    """A copy of the configuration for runs that begin with a model, which brings its shape."""
    text = config.read_text()
    begin = text.index("model:")
    end = text.index("}", begin) + 1
    path.write_text(text[:begin] + text[end:].lstrip("\n"))


def print_table(experiment, rows):
    asks = experiment.arguments.questions > 0
    header = ["scheme", "recipe", "bf16", "PTQ", "QAT", "gap of PTQ", "closed by QAT", *(["acc bf16", "acc PTQ", "acc QAT"] if asks else [])]
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for scheme, recipe, names in rows:
        bf16, ptq, qat = (experiment.loss(name) for name, _ in names)
        gap = ptq - bf16
        cells = [scheme, recipe, f"{bf16:.4f}", f"{ptq:.4f}", f"{qat:.4f}", f"{gap:.4f}", f"{100 * (ptq - qat) / gap:.0f} %" if gap > 0 else "no gap"]
        if asks:
            cells += [f"{100 * experiment.accuracy(*name):.1f} %" for name in names]
        print("| " + " | ".join(cells) + " |")


def main():
    arguments = parse_arguments()
    for path in (arguments.data, arguments.config, arguments.narrowgauge):
        if not path.exists():
            sys.exit(f"qat_convergence: there is no {path}")
    recipes = [Recipe(text, arguments) for text in arguments.recipes]
    arguments.output.mkdir(parents=True, exist_ok=True)
    experiment = Experiment(arguments)
    split(arguments.data, arguments.output)
    write_without_shape(arguments.config, experiment.folder("tune.yaml"))
    if arguments.questions:
        write_questions(experiment.folder("held_out.jsonl"), experiment.folder("questions.txt"), arguments.questions)
    experiment.together([(experiment.base,)])
    names = {(scheme, recipe.text): f"{scheme}-{recipe.text.replace('+', '-').replace('=', '')}" for scheme in arguments.schemes for recipe in recipes}

    def qat(scheme, recipe):
        return (experiment.tune, names[scheme, recipe.text], SCHEMES[scheme] + recipe.overrides, recipe.start, recipe.learning_rate)

    def reference(recipe):
        return (experiment.tune, recipe.reference, [], recipe.start, recipe.learning_rate)

    pairs = [(scheme, recipe) for recipe in recipes for scheme in arguments.schemes]
    references = {recipe.reference: recipe for recipe in recipes}
    # What begins with the base; then what begins with one of these.
    first = {"tuned": (experiment.tune, "tuned", [], "base", arguments.tune_lr)}
    first |= {name: reference(recipe) for name, recipe in references.items() if recipe.start == "base"}
    experiment.together([*first.values(), *(qat(*pair) for pair in pairs if pair[1].start == "base")])
    experiment.together([*(reference(recipe) for recipe in references.values() if recipe.start != "base"),
                         *(qat(*pair) for pair in pairs if pair[1].start != "base")])
    ptq = {(scheme, name): f"{scheme}-ptq-of-{name}" for scheme in arguments.schemes for name in references}
    experiment.together([(experiment.round_to_nearest, run, SCHEMES[scheme], name) for (scheme, name), run in ptq.items()])
    rows = [(scheme, recipe.text, [(recipe.reference, "hf"), (ptq[scheme, recipe.reference], "quantized"), (names[scheme, recipe.text], "quantized")])
            for scheme, recipe in pairs]
    if arguments.questions:
        experiment.together([(experiment.accuracy, *name) for name in sorted({name for *_, three in rows for name in three})])
    print(f"base after {arguments.steps} steps: {experiment.loss('base'):.4f}; {arguments.tune_steps} more")
    print_table(experiment, rows)


if __name__ == "__main__":
    main()
