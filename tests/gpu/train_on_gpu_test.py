"""GPUs train as the CPU does: losses, resuming across devices, export, evaluation, ranks with a GPU each over NCCL.

Argument: the narrowgauge program (of a checkout or of a bundle). Needs a GPU and fails without one; ranks take as many as
there are, and with one GPU a single rank goes through MPI and NCCL.
"""
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import unittest

NARROWGAUGE = pathlib.Path(sys.argv[1]).resolve()
# A bundle's own, where it has one.
MPIRUN = next((path for path in [NARROWGAUGE.parent / "mpirun"] if path.exists()), "mpirun")
NUM_GPUS = len(subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout.splitlines())
CONFIG = """
job:          {run_dir: %(run)s}
model:        {architecture: llama, dim: 128, num_layers: 3, num_heads: 4, num_kv_heads: 2, ffn_dim: 352, max_seq_len: 128}
tokenizer:    {kind: bytes}
data:         {train: [%(text)s], validation_fraction: 0.1, cache_dir: %(cache)s}
training:     {steps: 20, seq_len: 128, local_batch_size: 4, global_batch_size: 8, mixed_precision_param: float32}
optimizer:    {lr: 1.0e-3}
validation:   {interval: 20}
generation:   {interval: 20, prompt: "the ", max_new_tokens: 16}
checkpoint:   {interval: 10, keep_latest_k: 0}
"""


class TrainOnGpu(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        words = random.Random(0)
        self.text = self.folder / "text.txt"
        self.text.write_text(" ".join(words.choice("a cat sat on the mat and saw a dog".split()) for _ in range(20000)))

    def run_narrowgauge(self, *arguments, ranks=None, code=0):
        launcher = [MPIRUN, "--oversubscribe", "--bind-to", "none", "-np", str(ranks)] if ranks else []
        environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        done = subprocess.run([*launcher, NARROWGAUGE, *map(str, arguments)], capture_output=True, text=True,
                              env=environment, timeout=300)
        self.assertEqual(done.returncode, code, done.stderr)
        return done

    def write_config(self, name):
        config = self.folder / f"{name}.yaml"
        config.write_text(CONFIG % dict(run=self.folder / name, text=self.text, cache=self.folder / "cache"))
        return config

    def train(self, name, *overrides, ranks=None):
        errors = self.run_narrowgauge("train", self.write_config(name), *overrides, ranks=ranks).stderr
        lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
        return [line["loss"] for line in map(json.loads, lines) if "loss" in line], errors

    def assert_close(self, ours, reference, relative):
        for step, (a, b) in enumerate(zip(ours, reference, strict=True), 1):
            self.assertAlmostEqual(a / b, 1.0, delta=relative, msg=f"step {step}: {a} and {b}")

    def test_fp32_losses_equal_those_of_the_cpu(self):
        cpu, _ = self.train("cpu", "training.device=cpu")
        gpu, errors = self.train("gpu", "training.device=cuda")
        self.assertIn("cuda:0", errors)
        # fp32 without tf32 on both; sums of 128 to 352 terms in other orders, amplified over 20 updates.
        self.assert_close(gpu, cpu, 1e-4)

    def test_packed_documents_train_as_on_the_cpu(self):
        documents = self.folder / "documents.jsonl"
        words = random.Random(1)
        documents.write_text("".join(json.dumps({"text": " ".join(words.choice("a cat sat on the mat".split())
                                                                  for _ in range(words.randrange(1, 60)))}) + "\n"
                                     for _ in range(800)))
        overrides = [f"data.train=[{documents}]", "data.packing=documents"]
        cpu, _ = self.train("packed_cpu", "training.device=cpu", *overrides)
        gpu, _ = self.train("packed_gpu", "training.device=cuda", *overrides)
        self.assert_close(gpu, cpu, 2e-4)

    def test_auto_takes_the_gpu_and_bf16_stays_near_fp32(self):
        fp32, errors = self.train("fp32")
        self.assertIn("cuda:0", errors)
        bf16, _ = self.train("bf16", "training.mixed_precision_param=bfloat16")
        self.assert_close(bf16, fp32, 2e-2)

    def test_run_goes_on_from_the_cpu_on_the_gpu_and_its_export_scores_alike(self):
        straight, _ = self.train("straight", "training.device=cuda")
        self.train("moved", "training.device=cpu")
        moved, _ = self.train("moved", "training.device=cuda", "checkpoint.load_step=10")
        self.assert_close(moved, straight, 1e-4)
        scores = [json.loads(self.run_narrowgauge("eval", "--model", self.folder / "moved", "--tokenizer", "bytes", "--data",
                                                  self.text, "--device", device, "--json").stdout)["loss"]
                  for device in ("cpu", "cuda")]
        self.assertAlmostEqual(scores[0], scores[1], delta=1e-5)
        self.run_narrowgauge("generate", "--model", self.folder / "moved", "--tokenizer", "bytes", "--prompt", "the ",
                             "--device", "cuda")

    def test_ranks_have_a_gpu_each_and_meet_over_nccl(self):
        ranks = max(n for n in (1, 2, 4, 8) if n <= NUM_GPUS)
        batch = f"training.local_batch_size={8 // ranks}"
        alone, _ = self.train("alone", "training.device=cuda")
        for name, overrides in dict(sharded=[], replicated=[f"parallelism.data_parallel_replicate_degree={ranks}"],
                                    offloaded=["training.enable_cpu_offload=true"],
                                    freed=["parallelism.fsdp_reshard_after_forward=always"]).items():
            with self.subTest(name):
                losses, errors = self.train(name, "training.device=cuda", batch, *overrides, ranks=ranks)
                self.assertIn("cuda:0", errors)
                self.assert_close(losses, alone, 1e-4)
        _, errors = self.train("bf16", batch, "training.mixed_precision_param=bfloat16", ranks=ranks)
        self.assertIn("cuda:0", errors, "auto takes the GPUs")

    def test_more_ranks_than_gpus_are_refused(self):
        ranks = NUM_GPUS + 1
        done = self.run_narrowgauge("train", self.write_config("crowded"), "training.device=cuda",
                                    f"training.global_batch_size={4 * ranks}", ranks=ranks, code=2)
        self.assertEqual(done.stderr.count("start one rank for each GPU"), 1, done.stderr)

    def test_a_run_that_fails_leaves_the_record_of_its_collectives(self):
        self.run_narrowgauge("train", self.write_config("failed"), "training.device=cuda", "optimizer.lr=1e30",
                             "training.max_norm=0", "training.max_skipped_steps=1", ranks=1, code=1)
        record = json.loads((self.folder / "failed/flight_record/rank-0.json").read_text())
        self.assertIn("was applied", record["reason"])
        self.assertLessEqual({("world", "init"), ("world-1", "init"), ("world-1", "all_reduce")},
                             {(line["group"], line["operation"]) for line in record["collectives"]})
        self.assertNotIn(None, [line["seconds"] for line in record["collectives"]])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
