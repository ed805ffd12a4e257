"""Whole runs of narrowgauge train on a tiny model: learning, exit codes, resuming, ranks, export, bad input.

Argument: narrowgauge (the binary; narrowgauge_torch beside it).
"""
import json
import os
import pathlib
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

import torch
from transformers import AutoModelForCausalLM

NARROWGAUGE = os.path.abspath(sys.argv[1])

CONFIG = """
job:          {run_dir: %(run)s}
model:        {architecture: llama, dim: 32, num_layers: 2, num_heads: 4, num_kv_heads: 2, ffn_dim: 64, max_seq_len: 64}
tokenizer:    {kind: bytes}
data:         {train: [%(text)s], validation_fraction: 0.1, cache_dir: %(cache)s}
training:     {steps: 20, seq_len: 16, local_batch_size: 2, global_batch_size: 8, num_threads: 1,
               mixed_precision_param: float32, device: cpu}
optimizer:    {lr: 3.0e-3}
validation:   {interval: 10}
generation:   {interval: 10, prompt: "the ", max_new_tokens: 8}
checkpoint:   {interval: 5, keep_latest_k: 2}
metrics:      {log_interval: 5}
"""
WORDS = "the cat sat on a mat and saw the dog run to the red house by the sea where it slept".split()


def start(arguments, ranks=1, program=NARROWGAUGE):
    launcher = [] if ranks == 1 else ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", str(ranks)]
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                       OMPI_MCA_btl_vader_single_copy_mechanism="none")
    return subprocess.Popen([*launcher, program, *map(str, arguments)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env=environment)


def run(arguments, ranks=1):
    process = start(arguments, ranks)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def step_lines(folder):
    return [line for line in json_lines(folder / "metrics.jsonl") if "loss" in line]


class TrainRun(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        words = random.Random(0)
        self.text = self.folder / "text.txt"
        self.text.write_text(" ".join(words.choice(WORDS) for _ in range(4000)))
        self.config = self.write_config("run")

    def write_config(self, run_name, text=None):
        path = self.folder / f"{run_name}.yaml"
        path.write_text(CONFIG % dict(run=self.folder / run_name, text=text or self.text,
                                      cache=self.folder / "cache"))
        return path

    def train(self, *overrides, config=None, ranks=1):
        return run(["train", config or self.config, *overrides], ranks)

    def assert_fails(self, expected, *overrides, config=None, code=None):
        status, _, errors = self.train(*overrides, config=config)
        self.assertIn(expected, errors)
        self.assertEqual(status, code) if code else self.assertIn(status, (1, 2))

    def test_learns_validates_samples_and_exports(self):
        status, _, errors = self.train("training.steps=60")
        self.assertEqual(status, 0, errors)
        steps = step_lines(self.folder / "run")
        self.assertEqual([line["step"] for line in steps], list(range(1, 61)))
        self.assertAlmostEqual(steps[0]["loss"], 5.545, delta=0.1)  # ln 256
        self.assertLess(steps[-1]["loss"], 3.0)
        self.assertEqual(steps[-1]["tokens_seen"], 60 * 8 * 16)
        self.assertEqual(set(steps[0]), {"step", "loss", "grad_norm", "lr", "tokens_per_second", "step_seconds",
                                         "peak_memory_bytes", "tokens_seen"})
        lines = json_lines(self.folder / "run/metrics.jsonl")
        validation = [line for line in lines if "validation_loss" in line]
        self.assertEqual([line["step"] for line in validation], [10, 20, 30, 40, 50, 60])
        self.assertLess(validation[-1]["validation_loss"], validation[0]["validation_loss"])
        self.assertEqual(len(json_lines(self.folder / "run/samples.jsonl")), 6)

        status, output, errors = run(["eval", "--model", self.folder / "run", "--tasks", "perplexity", "--data", self.text, "--seq-len", "16", "--json"])
        self.assertEqual(status, 0, errors)
        scored = json.loads(output)
        model = AutoModelForCausalLM.from_pretrained(self.folder / "run/hf").eval()
        tokens = torch.tensor(list(self.text.read_bytes()))
        loss = 0.0
        with torch.no_grad():
            for begin in range(0, len(tokens) - 1, 16):
                window = tokens[begin:begin + 17]
                logits = model(window[None, :-1]).logits[0]
                loss += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
        self.assertEqual(scored["tokens"], len(tokens) - 1)
        self.assertEqual(scored["words"], 4000)
        self.assertAlmostEqual(scored["loss"], loss / (len(tokens) - 1), places=5)

    def test_generation_repeats_with_its_seed(self):
        self.assertEqual(self.train()[0], 0)
        command = ["generate", "--model", self.folder / "run", "--prompt", "the ",
                   "--max-new-tokens", "12", "--json"]
        first, second, other = (json.loads(run([*command, "--seed", str(seed)])[1]) for seed in (1, 1, 2))
        self.assertEqual(first["tokens"], second["tokens"])
        self.assertNotEqual(first["tokens"], other["tokens"])
        greedy = json.loads(run([*command, "--temperature", "0"])[1])["tokens"]
        model = AutoModelForCausalLM.from_pretrained(self.folder / "run/hf").eval()
        theirs = model.generate(torch.tensor([list(b"the ")]), max_new_tokens=12, do_sample=False,
                                eos_token_id=None)[0, 4:].tolist()
        self.assertEqual(greedy, theirs)

    def test_resumed_run_repeats_the_straight_one_bit_for_bit(self):
        self.assertEqual(self.train("training.mixed_precision_param=bfloat16")[0], 0)
        straight = step_lines(self.folder / "run")
        again = self.write_config("again")
        status, _, errors = self.train("training.mixed_precision_param=bfloat16", "training.steps=20",
                                       "checkpoint.keep_latest_k=0", config=again)
        self.assertEqual(status, 0, errors)
        status, _, errors = self.train("training.mixed_precision_param=bfloat16", "checkpoint.load_step=10",
                                       "checkpoint.keep_latest_k=0", config=again)
        self.assertEqual(status, 0, errors)
        resumed = step_lines(self.folder / "again")
        self.assertEqual([line["step"] for line in resumed], list(range(1, 21)))
        for before, after in zip(straight, resumed):
            self.assertEqual((before["loss"], before["grad_norm"], before["lr"]),
                             (after["loss"], after["grad_norm"], after["lr"]))

    def test_signal_saves_and_exits_75_and_the_next_start_goes_on(self):
        self.assertEqual(self.train()[0], 0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            with self.subTest(number.name):
                config = self.write_config(f"stopped-{number.name}")
                folder = self.folder / f"stopped-{number.name}"
                overrides = ["checkpoint.interval=1000000", "training.steps=2000", "generation.interval=0"]
                process = start(["train", config, *overrides])
                while not (folder / "metrics.jsonl").exists() or len(step_lines(folder)) < 3:
                    self.assertIsNone(process.poll(), "the run ended before the signal")
                    time.sleep(0.02)
                process.send_signal(number)
                _, errors = process.communicate(timeout=60)
                self.assertEqual(process.returncode, 75, errors)
                self.assertIn(number.name, errors)
                stopped_at = step_lines(folder)[-1]["step"]
                self.assertEqual((folder / "checkpoints/latest").read_text().strip(), f"step-{stopped_at:08d}")
                status, _, errors = run(["train", config, *overrides[:1], f"training.steps={stopped_at + 2}"])
                self.assertEqual(status, 0, errors)
                self.assertEqual([line["step"] for line in step_lines(folder)], list(range(1, stopped_at + 3)))

    def test_ranks_agree_to_rounding(self):
        losses = {}
        for ranks in (1, 2, 4):
            config = self.write_config(f"ranks{ranks}")
            status, _, errors = self.train("training.local_batch_size=2", config=config, ranks=ranks)
            self.assertEqual(status, 0, errors)
            lines = step_lines(self.folder / f"ranks{ranks}")
            losses[ranks] = [line["loss"] for line in lines]
            for line in lines if ranks > 1 else []:
                self.assertGreater(line["communication_seconds"], 0)
                self.assertGreaterEqual(line["exposed_communication_seconds"], 0)
                self.assertLess(line["exposed_communication_seconds"], line["step_seconds"])
        for ranks in (2, 4):
            for ours, reference in zip(losses[ranks], losses[1], strict=True):
                self.assertAlmostEqual(ours / reference, 1.0, delta=1e-5)

    def test_run_goes_on_at_another_world_size(self):
        self.assertEqual(self.train(ranks=1)[0], 0)
        moved = self.write_config("moved")
        self.assertEqual(self.train("checkpoint.keep_latest_k=0", config=moved, ranks=3 - 1)[0], 0)
        status, _, errors = self.train("checkpoint.load_step=10", config=moved, ranks=1)
        self.assertEqual(status, 0, errors)
        for ours, reference in zip(step_lines(self.folder / "moved"), step_lines(self.folder / "run"), strict=True):
            self.assertAlmostEqual(ours["loss"] / reference["loss"], 1.0, delta=1e-5)

    def test_replicated_and_sharded_meshes_agree(self):
        self.assertEqual(self.train(ranks=1)[0], 0)
        for replicas in (2, 4):
            config = self.write_config(f"mesh{replicas}")
            status, _, errors = self.train(f"parallelism.data_parallel_replicate_degree={replicas}", config=config, ranks=4)
            self.assertEqual(status, 0, errors)
            lines = step_lines(self.folder / f"mesh{replicas}")
            for ours, reference in zip(lines, step_lines(self.folder / "run"), strict=True):
                self.assertAlmostEqual(ours["loss"] / reference["loss"], 1.0, delta=1e-5)

    def test_reshard_policy_and_offload_keep_the_bits(self):
        lines = {}
        for name, override in dict(plain="training.steps=10", freed="parallelism.fsdp_reshard_after_forward=always",
                                   kept="parallelism.fsdp_reshard_after_forward=never",
                                   halves="parallelism.fsdp_reshard_after_forward=2",
                                   offloaded="training.enable_cpu_offload=true").items():
            status, _, errors = self.train("training.steps=10", override, config=self.write_config(name), ranks=4)
            self.assertEqual(status, 0, errors)
            lines[name] = [(line["loss"], line["grad_norm"]) for line in step_lines(self.folder / name)]
            self.assertEqual(lines[name], lines["plain"], name)
        self.assertEqual(len(lines["plain"]), 10)
        self.assert_fails("expected a divisor of the 1 ranks", "parallelism.fsdp_reshard_after_forward=3", code=2)

    def test_activation_checkpointing_keeps_the_bits(self):
        runs = {"plain": [], "full": ["activation_checkpoint.mode=full"],
                "second": ["activation_checkpoint.mode=selective"],
                "op": ["activation_checkpoint.mode=selective", "activation_checkpoint.selective_ac_option=op"]}
        lines = {}
        for name, overrides in runs.items():
            status, _, errors = self.train("training.mixed_precision_param=bfloat16", "training.steps=10", *overrides,
                                           config=self.write_config(name), ranks=2)
            self.assertEqual(status, 0, errors)
            lines[name] = [(line["loss"], line["grad_norm"]) for line in step_lines(self.folder / name)]
            self.assertEqual(lines[name], lines["plain"], name)
        self.assertEqual(len(lines["plain"]), 10)

    def test_another_run_in_the_folder_is_refused(self):
        self.assertEqual(self.train()[0], 0)
        self.assert_fails("holds another run (training.seed: 42 -> 7)", "training.seed=7", code=2)

    def test_finished_run_is_left_alone(self):
        self.assertEqual(self.train()[0], 0)
        before = (self.folder / "run/metrics.jsonl").read_text()
        self.assertEqual(self.train()[0], 0)
        self.assertEqual((self.folder / "run/metrics.jsonl").read_text(), before)

    def test_bad_input_is_named(self):
        self.assert_fails("'missing.txt', which matches nothing", config=self.write_config("no-file", "missing.txt"))
        empty = self.folder / "nothing.txt"
        empty.touch()
        self.assert_fails("1 file(s) without any", config=self.write_config("no-text", empty))
        latin1 = self.folder / "latin1.txt"
        latin1.write_bytes(b"x" * 1000 + b"\xe9" + b"y" * 1000)
        self.assert_fails("byte offset 1000", "tokenizer.kind=huggingface", "tokenizer.train_vocab_size=300",
                          config=self.write_config("not-utf8", latin1))
        short = self.folder / "short.txt"
        short.write_text("a" * 60)
        self.assert_fails("global batch of 8", config=self.write_config("too-short", short))
        ids = self.folder / "ids.bin"
        ids.write_bytes(struct.pack("<4H", 1, 2, 3, 500) * 500)
        self.assert_fails("500 at token 3", "tokenizer.kind=none", "model.vocab_size=256", "generation.interval=0",
                          config=self.write_config("large-ids", ids))
        self.assert_fails("model.vocab_size", "model.vocab_size=100", config=self.write_config("few-ids"), code=2)
        imported = self.write_config("imported")
        imported.write_text("".join(line for line in imported.read_text().splitlines(True) if "model:" not in line))
        self.assert_fails("'mamba'", f"model.initial_load_path={self.make_model('mamba')}", config=imported, code=1)
        self.assert_fails("data_parallel_shard_degree (3)", "parallelism.data_parallel_shard_degree=3", code=2)
        self.assert_fails("generation.prompt: expected 1 to 63 tokens, got 0", "generation.prompt=",
                          config=self.write_config("no-prompt"), code=2)
        self.assert_fails("validation.interval: expected 0", "data.validation_fraction=0.00001",
                          config=self.write_config("no-validation"), code=2)

    def make_model(self, model_type):
        folder = self.folder / model_type
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(dict(model_type=model_type, architectures=["Other"])))
        return folder

    def test_changed_data_or_batch_is_refused_on_resume(self):
        self.assertEqual(self.train("training.steps=10")[0], 0)
        self.assert_fails("training.global_batch_size: the run has had 8 windows a step so far, got 16",
                          "training.global_batch_size=16", code=2)
        self.text.write_text(self.text.read_text() * 2)
        self.assert_fails("data.train: the run has had", code=2)

    def test_fine_tuned_run_outlives_its_base_and_keeps_its_end_tokens(self):
        self.assertEqual(self.train()[0], 0)
        base = self.folder / "base"
        (self.folder / "run/hf").rename(base)
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | dict(eos_token_id=[1, 2], bos_token_id=3)))
        tuned = self.write_config("tuned")
        lines = [line for line in tuned.read_text().splitlines(True) if not line.startswith("model:")]
        tuned.write_text(f"model: {{initial_load_path: {base}}}\n" + "".join(lines))
        status, _, errors = self.train(config=tuned)
        self.assertEqual(status, 0, errors)
        self.assertLess(step_lines(self.folder / "tuned")[0]["loss"], 4.5)  # it begins where the base ended
        base.rename(self.folder / "gone")
        self.assertEqual(self.train("training.steps=22", config=tuned)[0], 0)
        self.assertEqual(run(["export", self.folder / "tuned", "--output", self.folder / "tuned-hf"])[0], 0)
        exported = json.loads((self.folder / "tuned-hf/config.json").read_text())
        self.assertEqual((exported["bos_token_id"], exported["eos_token_id"]), (3, [1, 2]))

    def test_full_disk_costs_a_checkpoint_and_not_the_run(self):
        # No file of the run may grow beyond what the metrics need.
        script = f"ulimit -f 60; trap '' XFSZ; exec {NARROWGAUGE} train {self.config} export.enable=false"
        process = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
        self.assertEqual(process.returncode, 1, process.stderr)
        self.assertIn("no checkpoint", process.stderr)
        self.assertEqual([line["step"] for line in step_lines(self.folder / "run")], list(range(1, 21)))
        self.assertEqual(self.train()[0], 0)

    def test_signal_without_checkpoints_is_a_failure(self):
        process = start(["train", self.config, "checkpoint.enable=false", "training.steps=100000"])
        while not (self.folder / "run/metrics.jsonl").exists() or len(step_lines(self.folder / "run")) < 3:
            self.assertIsNone(process.poll(), "the run ended before the signal")
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1)
        self.assertIn("stopped by SIGTERM", errors)

    def test_validation_loss_does_not_depend_on_ranks(self):
        losses = []
        for ranks in (1, 2, 4):
            config = self.write_config(f"validated{ranks}")
            status, _, errors = self.train("validation.max_batches=2", "training.steps=10", config=config, ranks=ranks)
            self.assertEqual(status, 0, errors)
            losses += [line["validation_loss"] for line in json_lines(self.folder / f"validated{ranks}/metrics.jsonl")
                       if "validation_loss" in line]
        self.assertEqual(len(losses), 3)
        for loss in losses[1:]:
            self.assertAlmostEqual(loss / losses[0], 1.0, delta=1e-5)

    def test_one_failing_rank_ends_all_with_its_cause(self):
        # Rank 1 alone cannot read the configuration.
        wrapper = self.folder / "rank.sh"
        wrapper.write_text(f"""#!/bin/bash
config={self.config}
[ "$OMPI_COMM_WORLD_RANK" = 1 ] && config=/nowhere/missing.yaml
exec {NARROWGAUGE} train $config
""")
        wrapper.chmod(0o755)
        started = time.monotonic()
        process = start([], ranks=2, program=wrapper)
        _, errors = process.communicate(timeout=60)
        self.assertNotEqual(process.returncode, 0)
        self.assertLess(time.monotonic() - started, 30)
        self.assertEqual(errors.count("/nowhere/missing.yaml"), 1, errors)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
