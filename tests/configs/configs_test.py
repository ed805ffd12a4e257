"""Every file of configs/ is accepted by `plan` and by `train --dry-run`, and the figures that a ready configuration
states in its comment are those of `plan`.

With --write as the only argument behind the program, the comments are rewritten instead:
    tools/python.sh tests/configs/configs_test.py bazel-bin/trainer/narrowgauge --write
"""
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

BINARY = pathlib.Path(sys.argv[1]).resolve()
CONFIGS = pathlib.Path("configs").resolve()
READY = sorted((CONFIGS / "pretrain").glob("*.yaml"))
STATED = re.compile(r"^# plan(?P<machines>( --\w+ \w+)+):\n(#   .*\n)+", re.MULTILINE)
TOLERANCE = 0.01  # of a figure: what rounding hides, and less than a change of the plan that matters


def narrowgauge(*arguments):
    return subprocess.run([BINARY, *arguments], capture_output=True, text=True, timeout=60)


def text_of(path):
    return path.read_text(encoding="utf-8")


def planned(path, machines):
    result = narrowgauge("plan", path, "--json", *machines.split())
    if result.returncode != 0:
        raise AssertionError(f"{path.name}{machines}: {result.stdout}{result.stderr}")
    return json.loads(result.stdout)


def statement(path, machines):
    """The comment that tells what the run takes, by plan's figures."""
    plan = planned(path, machines)
    steps = int(re.search(r"\bsteps: (\d+)", text_of(path))[1])
    tokens, hours = steps * plan["tokens_per_step"], steps * plan["time"]["step_seconds"] / 3600
    return (f"# plan{machines}:\n"
            f"#   {plan['parameters']:,} parameters; {steps:,} steps of {plan['tokens_per_step']:,} tokens, "
            f"{tokens / 1e9:,.1f} G tokens in all;\n"
            f"#   {plan['memory_bytes']['total'] / 2**30:.1f} GiB a rank, {plan['time']['tokens_per_second']:,.0f} "
            f"tokens/s; {hours:,.0f} hours, {hours * plan['world_size']:,.0f} GPU hours\n")


def numbers(text):
    return [float(number.replace(",", "")) for number in re.findall(r"(?<![\w-])\d[\d,]*(?:\.\d+)?", text)]


class Configs(unittest.TestCase):
    def test_there_are_ready_ones(self):
        names = {path.stem for path in READY}
        self.assertLessEqual({"llama3.2_1b", "llama3.2_3b", "llama3_8b", "llama3_70b", "qwen3_0.6b", "qwen3_8b",
                              "gpt2_124m"}, names)

    def test_stated_figures_are_those_of_plan(self):
        for path in READY:
            with self.subTest(path.name):
                stated = STATED.search(text_of(path))
                self.assertIsNotNone(stated, "expected a comment of what plan says")
                expected = statement(path, stated["machines"])
                self.assertEqual(re.sub(r"[\d,.]+", "#", stated[0]), re.sub(r"[\d,.]+", "#", expected))
                for of_file, of_plan in zip(numbers(stated[0]), numbers(expected), strict=True):
                    self.assertLessEqual(abs(of_file - of_plan), TOLERANCE * of_plan, f"{stated[0]}\n{expected}")

    def test_ready_ones_fit_their_machines(self):
        for path in READY:
            with self.subTest(path.name):
                plan = planned(path, STATED.search(text_of(path))["machines"])
                self.assertTrue(plan["fits"])
                self.assertEqual(plan["accumulation_steps"], 1)

    def test_plan_accepts_each(self):
        others = sorted(set(CONFIGS.rglob("*.yaml")) - set(READY))
        self.assertTrue(others)
        for path in others:
            with self.subTest(path.name):
                self.assertGreater(planned(path, " --gpu cpu")["time"]["tokens_per_second"], 0)

    def test_dry_run_accepts_each(self):
        with tempfile.TemporaryDirectory() as folder:
            text = pathlib.Path(folder) / "text.txt"
            text.write_text("some text")
            for path in sorted(CONFIGS.rglob("*.yaml")):
                with self.subTest(path.name):
                    is_random = "random_tokens" in text_of(path)
                    source = [] if is_random else [f"data.train=[{text}]"]
                    result = narrowgauge("train", path, "--dry-run", f"job.run_dir={folder}/run",
                                         "training.device=cpu", "training.global_batch_size=-1", *source)
                    self.assertEqual(result.stderr, "")
                    lines = result.stdout.splitlines()
                    self.assertEqual([line.split(":")[0] for line in lines[:3]],
                                     ["ok      data", "ok      model", "ok      ranks"])
                    # The large ones want more memory and disk than a test has: said, with both figures.
                    for line, name in zip(lines[3:], ("memory", "disk"), strict=True):
                        found = re.match(rf"(ok      |problem ){name}: ([\d.]+) GiB of ([\d.]+) GiB", line)
                        self.assertIsNotNone(found, line)
                        self.assertEqual(found[1].strip() == "ok", float(found[2]) <= float(found[3]), line)


def write():
    for path in READY:
        text = text_of(path)
        path.write_text(STATED.sub(lambda found: statement(path, found["machines"]), text), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[2:] == ["--write"]:
        write()
    else:
        unittest.main(argv=sys.argv[:1])
