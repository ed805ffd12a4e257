"""A tiny model's runs, for tests: configuration, text, starting the program on some ranks, what a run left."""
import json
import os
import pathlib
import random
import subprocess

CONFIG = """
job:          {run_dir: "%(run)s"}
model:        {architecture: llama, dim: 32, num_layers: 2, num_heads: 4, num_kv_heads: 2, ffn_dim: 64, max_seq_len: 64}
tokenizer:    {kind: bytes}
data:         {train: [%(text)s], cache_dir: %(cache)s}
training:     {steps: 20, seq_len: 16, local_batch_size: 1, global_batch_size: 24, num_threads: 1,
               mixed_precision_param: float32, device: cpu}
optimizer:    {lr: 3.0e-3}
lr_scheduler: {decay_type: constant, warmup_steps: 5}
checkpoint:   {interval: 1000, keep_latest_k: 0}
export:       {enable: false}
"""
# What a conversion (float8, qat, sparsity) is tried on: bf16, with validation. A test adds its section.
CONVERSION_CONFIG = """
job:          {run_dir: "%(run)s"}
model:        {architecture: llama, dim: 32, num_layers: 2, num_heads: 4, num_kv_heads: 2, ffn_dim: 64, max_seq_len: 64}
tokenizer:    {kind: bytes}
data:         {train: [%(text)s], validation_fraction: 0.1, cache_dir: %(cache)s}
training:     {steps: 12, seq_len: 16, local_batch_size: 2, global_batch_size: 8, num_threads: 1, device: cpu}
optimizer:    {lr: 3.0e-3}
validation:   {interval: 6}
checkpoint:   {interval: 6, keep_latest_k: 0}
export:       {enable: false}
"""
WORDS = "the cat sat on a mat and saw the dog run to the red house by the sea where it slept".split()


class TinyRuns:
    """Runs in one folder, by name."""

    def __init__(self, program, folder, text=None, config=CONFIG):
        """Trains on the file `text`, or on one it writes. `config` has places for run, text and cache."""
        self.program = os.path.abspath(program)
        self.template = config
        self.folder = pathlib.Path(folder)
        self.text = text or self.folder / "text.txt"
        if text is None:
            words = random.Random(0)
            self.text.write_text(" ".join(words.choice(WORDS) for _ in range(4000)))

    def config(self, name):
        path = self.folder / f"{name}.yaml"
        path.write_text(self.template % dict(run=self.folder / name, text=self.text, cache=self.folder / "cache"))
        return path

    def start(self, name, *overrides, ranks=1, **options):
        """The process. `options` are subprocess.Popen's."""
        launcher = [] if ranks == 1 else ["mpirun", "-q", "--oversubscribe", "--bind-to", "none", "-np", str(ranks)]
        environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                           OMPI_MCA_btl_vader_single_copy_mechanism="none", OMP_NUM_THREADS="1")
        options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) | options
        return subprocess.Popen([*launcher, self.program, "train", self.config(name), *overrides], env=environment,
                                **options)

    def run(self, name, *overrides, ranks=1):
        """Exit code, standard error and the run's folder."""
        process = self.start(name, *overrides, ranks=ranks)
        _, errors = process.communicate(timeout=300)
        return process.returncode, errors, self.folder / name

    def train(self, name, *overrides, ranks=1):
        """What it wrote to standard error. Asserts that it ends well."""
        status, errors, _ = self.run(name, *overrides, ranks=ranks)
        assert status == 0, f"{name}: exit code {status}\n{errors}"
        return errors

    def lines(self, name):
        """What metrics.jsonl holds so far."""
        return [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]

    def metrics(self, name):
        """The lines of all steps so far."""
        return [line for line in self.lines(name) if "loss" in line]

    def store(self, name):
        return self.folder / name / "checkpoints"

    def checkpoint(self, *arguments):
        """`narrowgauge checkpoint ARGUMENT ...`: exit code, standard output, standard error."""
        ended = subprocess.run([self.program, "checkpoint", *map(str, arguments)], capture_output=True, text=True,
                               timeout=120)
        return ended.returncode, ended.stdout, ended.stderr
