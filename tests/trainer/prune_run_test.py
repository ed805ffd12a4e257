"""prune, what transformers, eval and generate make of its results, and fine-tuning that holds the zeros.

Arguments: narrowgauge (the binary; narrowgauge_torch beside it) and print_logits.
"""
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import unittest

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import word_model
from word_model import SEQ_LEN

NARROWGAUGE, PRINT_LOGITS = map(os.path.abspath, sys.argv[1:3])
CONFIG = """
job:          {run_dir: "%(run)s"}
model:        {initial_load_path: "%(model)s"}
tokenizer:    {kind: bytes}
data:         {train: ["%(text)s"], validation_fraction: 0.1, cache_dir: "%(cache)s"}
training:     {steps: 12, seq_len: 32, local_batch_size: 4, global_batch_size: 8, num_threads: 1, device: cpu}
optimizer:    {lr: 2.0e-3, weight_decay: 0.1}
lr_scheduler: {decay_type: constant, warmup_steps: 2}
sparsity:     {kind: pruned}
checkpoint:   {interval: 4, keep_latest_k: 0}
"""


def run(*arguments, **options):
    environment = dict(os.environ, OMP_NUM_THREADS="1", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                       OMPI_MCA_btl_vader_single_copy_mechanism="none")
    return subprocess.run([*map(str, arguments)], capture_output=True, text=True, env=environment, timeout=280, **options)


def linears(weights):
    return {name: weight.float() for name, weight in weights.items() if "_proj" in name}


def our_logits(model, tokens):
    """[tokens, vocab], and how many linears were packed for them."""
    done = subprocess.run([PRINT_LOGITS, model, *map(str, tokens)], check=True, capture_output=True)
    packed = int(re.search(rb"(\d+) packed 2:4 linears", done.stderr)[1])
    return torch.from_numpy(np.frombuffer(done.stdout, dtype=np.float32).reshape(len(tokens), -1).copy()), packed


def their_logits(model, tokens, dtype):
    with torch.no_grad():
        return LlamaForCausalLM.from_pretrained(model, dtype=dtype)(torch.tensor([tokens])).logits[0].float()


def limit_file_size():
    """The result's file is too large, a block's is not."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000))


class PruneRun(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.temporary.name)
        word_model.train(cls.folder)
        cls.weights = load_file(cls.folder / "model/model.safetensors")

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def arguments(self, method, pattern, output):
        return [NARROWGAUGE, "prune", "--model", self.folder / "model", "--tokenizer", "bytes", "--method", method,
                "--pattern", pattern, "--output", output, "--seq-len", SEQ_LEN, "--samples", 64,
                "--calibration", self.folder / "train.txt"]

    def prune(self, method, pattern):
        """The folder; made once."""
        output = self.folder / f"{method}-{pattern.replace(':', '_')}"
        if not output.exists():
            done = run(*self.arguments(method, pattern, output))
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("of 110592 weights of the blocks' linears are 0", done.stderr)
            self.assertFalse(pathlib.Path(f"{output}.partial").exists())
        return output

    def pruned(self, method, pattern):
        return load_file(self.prune(method, pattern) / "model.safetensors")

    def losses(self, *models):
        done = run(NARROWGAUGE, "eval", "--model", self.folder / "model", "--tokenizer", "bytes", "--compare",
                   ",".join(map(str, models)), "--data", self.folder / "held_out.txt", "--seq-len", SEQ_LEN, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        return [model["loss"] for model in json.loads(done.stdout.splitlines()[-1])["models"]]

    def test_as_many_zeros_as_the_pattern_says_and_nothing_else_changes(self):
        for method in ("magnitude", "wanda", "sparsegpt"):
            for pattern, keep, group in (("0.5", None, None), ("2:4", 2, 4), ("4:8", 4, 8)):
                with self.subTest(f"{method} {pattern}"):
                    weights = self.pruned(method, pattern)
                    self.assertEqual(set(weights), set(self.weights))
                    for name, weight in weights.items():
                        self.assertEqual(weight.dtype, torch.bfloat16)
                        if "_proj" not in name:
                            self.assertTrue(torch.equal(weight, self.weights[name]), name)
                            continue
                        if group:
                            kept = (weight.reshape(-1, group) != 0).sum(1)
                            self.assertEqual((kept.min().item(), kept.max().item()), (keep, keep), name)
                        elif method == "wanda":  # within each row
                            self.assertTrue(((weight != 0).sum(1) == weight.shape[1] // 2).all(), name)
                        else:
                            self.assertEqual((weight != 0).sum().item(), weight.numel() // 2, name)
                        if method != "sparsegpt":  # which corrects what stays
                            self.assertTrue(torch.equal(weight[weight != 0], self.weights[name][weight != 0]), name)

    def test_magnitude_keeps_the_largest(self):
        for name, weight in linears(self.pruned("magnitude", "0.5")).items():
            source = self.weights[name].float().abs()
            self.assertGreaterEqual(source[weight != 0].min(), source[weight == 0].max(), name)

    def test_wanda_is_the_papers(self):
        """Its masks in the first block, whose inputs nothing pruned has touched, from transformers' activations."""
        model = LlamaForCausalLM.from_pretrained(self.folder / "model", dtype=torch.bfloat16)
        tokens = torch.tensor(list((self.folder / "train.txt").read_bytes()))
        windows = tokens[:len(tokens) // SEQ_LEN * SEQ_LEN].view(-1, SEQ_LEN)
        windows = windows[torch.arange(64) * len(windows) // 64]
        squares = {}
        for name, module in model.model.layers[0].named_modules():
            if name.endswith("_proj"):
                module.register_forward_pre_hook(
                    lambda _, inputs, name=name: squares.__setitem__(name, inputs[0].float().square().sum((0, 1))))
        with torch.no_grad():
            model(windows)
        self.assertEqual(len(squares), 7)
        pruned = self.pruned("wanda", "2:4")
        for name, square in squares.items():
            full = f"model.layers.0.{name}.weight"
            score = self.weights[full].float().abs() * square.sqrt()
            expected = torch.zeros_like(score).view(-1, 4)
            expected.scatter_(1, score.view(-1, 4).topk(2, 1).indices, 1)
            differ = (expected.view_as(score).bool() != (pruned[full] != 0)).float().mean().item()
            self.assertLess(differ, 0.005, name)  # ties, and norms that differ in their last bits

    def test_sparsegpt_keeps_more_than_magnitude(self):
        """Wanda is not held to that: at a share of one half it loses on this model."""
        for pattern in ("0.5", "2:4"):
            base, magnitude, sparsegpt = self.losses(self.prune("magnitude", pattern), self.prune("sparsegpt", pattern))
            with self.subTest(pattern):
                self.assertLess(sparsegpt - base, 0.9 * (magnitude - base))

    def test_goes_on_after_an_interruption_with_the_same_bytes(self):
        whole = self.prune("sparsegpt", "2:4")
        resumed = self.folder / "resumed"
        self.assertNotEqual(run(*self.arguments("sparsegpt", "2:4", resumed), preexec_fn=limit_file_size).returncode, 0)
        self.assertTrue((self.folder / "resumed.partial/block-2").exists())
        self.assertFalse(resumed.exists())
        other = run(*self.arguments("wanda", "2:4", resumed))
        self.assertEqual(other.returncode, 1)
        self.assertIn("to be of the same job", other.stderr)
        done = run(*self.arguments("sparsegpt", "2:4", resumed))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual((resumed / "model.safetensors").read_bytes(), (whole / "model.safetensors").read_bytes())

    def test_mistakes_are_told(self):
        (self.folder / "mine").mkdir()
        (self.folder / "mine/notes.txt").write_text("x")
        for method, pattern, output, status, expected in [
                ("magnitude", "2:2", "bad", 2, "--pattern: expected a share of pruned weights in [0, 1), or keep:group"),
                ("magnitude", "1.0", "bad", 2, "--pattern: expected a share"),
                ("magnitude", "2:5", "bad", 1, "layers.0.self_attn.q_proj.weight: expected in_features that 5 divides, got 64"),
                ("smallest", "2:4", "bad", 2, "magnitude, wanda"),
                ("magnitude", "2:4", "mine", 1, "mine")]:
            with self.subTest(f"{method} {pattern} {output}"):
                done = run(*self.arguments(method, pattern, self.folder / output))
                self.assertEqual(done.returncode, status, done.stderr)
                self.assertIn(expected, done.stderr)
        done = run(*self.arguments("wanda", "0.5", self.folder / "bad")[:-2])
        self.assertEqual(done.returncode, 2)
        self.assertIn("--calibration: expected text for --method wanda", done.stderr)

    def held_out(self, count):
        return list((self.folder / "held_out.txt").read_bytes()[:count])

    def test_linears_of_two_in_four_stay_packed_and_compute_the_same(self):
        """Few tokens and many, which are two products; the other patterns are dense."""
        for method, pattern, expected in (("sparsegpt", "2:4", 12), ("magnitude", "2:4", 12), ("magnitude", "0.5", 0),
                                          ("magnitude", "4:8", 0)):
            model = self.prune(method, pattern)
            for count in (3, 48):
                with self.subTest(f"{method} {pattern} {count}"):
                    tokens = self.held_out(count)
                    exact = their_logits(model, tokens, torch.float32)
                    logits, packed = our_logits(model, tokens)
                    self.assertEqual(packed, expected)  # qkv, o, gate_up and down of three blocks
                    rounding = (their_logits(model, tokens, torch.bfloat16) - exact).abs().max()
                    self.assertLess((logits - exact).abs().max(), 2 * rounding)

    def test_generate_decodes_from_packed_linears(self):
        """Each token is the likeliest one for transformers too, up to what bf16 rounds."""
        model = self.prune("sparsegpt", "2:4")
        done = run(NARROWGAUGE, "generate", "--model", model, "--tokenizer", "bytes", "--temperature", 0, "--json",
                   "--prompt", bytes(self.held_out(12)).decode(), "--max-new-tokens", 40)
        self.assertEqual(done.returncode, 0, done.stderr)
        answer = json.loads(done.stdout.splitlines()[-1])
        self.assertEqual(len(answer["tokens"]), 40)
        tokens = answer["prompt_tokens"] + answer["tokens"]
        exact = their_logits(model, tokens, torch.float32)
        rounding = (their_logits(model, tokens, torch.bfloat16) - exact).abs().max()
        first = len(answer["prompt_tokens"]) - 1
        for at, token in enumerate(answer["tokens"], first):
            self.assertLess(exact[at].max() - exact[at][token], 2 * rounding)

    def train(self, name, *overrides, model="sparsegpt-2_4", ranks=1):
        path = self.folder / f"{name}.yaml"
        path.write_text(CONFIG % dict(run=self.folder / name, model=self.folder / model, text=self.folder / "train.txt",
                                      cache=self.folder / "cache"))
        launcher = [] if ranks == 1 else ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", str(ranks)]
        return run(*launcher, NARROWGAUGE, "train", path, *overrides)

    def tuned(self, name, *overrides, **options):
        """Losses and the exported linears."""
        done = self.train(name, *overrides, **options)
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]
        return ([(line["step"], line["loss"]) for line in lines if "loss" in line],
                linears(load_file(self.folder / name / "hf/model.safetensors")), lines)

    def zeros_that_moved(self, weights):
        before = linears(self.pruned("sparsegpt", "2:4"))
        self.assertEqual(set(weights), set(before))
        for name, weight in weights.items():
            self.assertGreater((weight != before[name]).float().mean().item(), 0.4, name)  # what is left does learn
        return sum((weight[before[name] == 0] != 0).sum().item() for name, weight in weights.items())

    def test_tuning_holds_the_zeros(self):
        self.prune("sparsegpt", "2:4")
        for name, overrides, ranks in [
                ("adamw", [], 1), ("ranks", [], 2), ("muon", ["optimizer.name=Muon"], 2),
                ("muon-replicas", ["optimizer.name=Muon", "parallelism.data_parallel_replicate_degree=2"], 2),
                ("low-bit", ["optimizer.name=AdamW4bit"], 1),
                ("bf16", ["training.dtype=bfloat16", "optimizer.bf16_stochastic_round=true"], 1),
                ("float8", ["float8.recipe_name=tensorwise"], 1)]:
            with self.subTest(name):
                losses, weights, _ = self.tuned(name, *overrides, ranks=ranks)
                self.assertEqual(self.zeros_that_moved(weights), 0)
                self.assertLess(losses[-1][1], losses[0][1])
        self.assertGreater(self.zeros_that_moved(self.tuned("free", "sparsity.kind=none")[1]), 10000)

    def test_transformers_reads_what_export_writes_of_a_tuned_2_4_model(self):
        """The same logits, and the zeros of every linear; from the end of the run and from its checkpoint."""
        self.prune("sparsegpt", "2:4")
        self.tuned("exported")
        rounded = self.folder / "exported_bf16"
        done = run(NARROWGAUGE, "export", self.folder / "exported", "--dtype", "bfloat16", "--output", rounded)
        self.assertEqual(done.returncode, 0, done.stderr)
        tokens = self.held_out(48)
        for model, dtype in ((self.folder / "exported/hf", torch.float32), (rounded, torch.bfloat16)):
            with self.subTest(str(dtype)):
                loaded = LlamaForCausalLM.from_pretrained(model)
                self.assertEqual(loaded.dtype, dtype)
                for name, weight in loaded.named_parameters():
                    if "_proj" in name:
                        kept = (weight.reshape(-1, 4) != 0).sum(1)
                        self.assertEqual(kept.max().item(), 2, name)
                        self.assertGreater(kept.float().mean(), 1.99, name)
                exact = their_logits(model, tokens, torch.float32)
                logits, packed = our_logits(model, tokens)
                self.assertEqual(packed, 12 if dtype == torch.bfloat16 else 0)
                rounding = (their_logits(model, tokens, torch.bfloat16) - exact).abs().max()
                self.assertLess((logits - exact).abs().max(), 2 * rounding if dtype == torch.bfloat16 else 1e-4)

    def test_pruned_weights_are_no_part_of_the_gradient(self):
        self.prune("sparsegpt", "2:4")
        held, free = (self.tuned(f"norm-{kind}", f"sparsity.kind={kind}", "training.steps=1")[2]
                      for kind in ("pruned", "none"))
        held, free = (next(line for line in lines if "loss" in line) for lines in (held, free))
        self.assertEqual(held["loss"], free["loss"])
        self.assertLess(held["grad_norm"], 0.95 * free["grad_norm"])

    def test_resumes_bit_for_bit(self):
        self.prune("sparsegpt", "2:4")
        losses, weights, _ = self.tuned("straight")
        again, _, _ = self.tuned("again")
        self.assertEqual(again, losses)
        resumed, resumed_weights, _ = self.tuned("again", "checkpoint.load_step=8")
        self.assertEqual(resumed, losses)
        for name, weight in weights.items():
            self.assertTrue(torch.equal(weight, resumed_weights[name]), name)

    def test_compositions_that_cannot_be_are_refused(self):
        self.prune("sparsegpt", "2:4")
        for overrides, status, expected in [
                (["lora.rank=4"], 2, "expected none with qat or lora"),
                (["qat.scheme=int8-dynamic-act-int4-weight"], 2, "expected none with qat or lora"),
                (["optimizer.early_step_in_backward=true", "training.max_norm=0"], 2,
                 "optimizer.early_step_in_backward"),
                (["sparsity.end_step=3"], 2, "held from the first step to the last")]:
            with self.subTest(overrides):
                done = self.train("refused", *overrides)
                self.assertEqual(done.returncode, status, done.stderr)
                self.assertIn(expected, done.stderr)
        done = self.train("dense", model="model")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("expected zeros in the linears of model.initial_load_path, got none", done.stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
