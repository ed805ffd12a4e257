"""A training run of four ranks under mpirun loses one: stopped, or killed. The others end the job in time, say who is
to blame, leave their flight records in the run directory, and no process stays behind.

Argument: narrowgauge (the binary; narrowgauge_torch beside it).
"""
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

NARROWGAUGE = os.path.abspath(sys.argv[1])
RANKS = 4
TIMEOUT_SECONDS = 3
CONFIG = """
job:          {run_dir: %(run)s}
model:        {architecture: llama, vocab_size: 64, dim: 32, num_layers: 2, num_heads: 4, num_kv_heads: 2, ffn_dim: 64,
               max_seq_len: 64}
tokenizer:    {kind: none}
data:         {train: [random_tokens]}
training:     {steps: 1000000, seq_len: 16, local_batch_size: 1, num_threads: 1, device: cpu}
checkpoint:   {enable: false}
comm:         {train_timeout_seconds: %(timeout)d}
"""


def is_alive(process):
    try:
        state = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def rank_processes(run):
    """Process ids by rank of the programs that train in `run`."""
    processes = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if arguments.split(b"\0")[0].endswith(b"narrowgauge_torch") and str(run.parent).encode() in arguments:
            rank = next((line for line in environment if line.startswith(b"OMPI_COMM_WORLD_RANK=")), None)
            if rank:
                processes[int(rank.split(b"=")[1])] = int(folder.name)
    return processes


class RankFailure(unittest.TestCase):
    def strike(self, rank, sign):
        """Starts a run, sends `sign` to one rank in the middle of training and waits for the end."""
        run = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "run"
        config = run.parent / "run.yaml"
        config.write_text(CONFIG % dict(run=run, timeout=TIMEOUT_SECONDS))
        job = subprocess.Popen(
            ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", str(RANKS), NARROWGAUGE, "train", config],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env=dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1"))
        self.addCleanup(job.kill)
        metrics = run / "metrics.jsonl"
        started = time.monotonic()
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 5:
            self.assertIsNone(job.poll(), "the run ended by itself")
            self.assertLess(time.monotonic() - started, 60, "the run did not start")
            time.sleep(0.05)
        processes = rank_processes(run)
        self.assertEqual(sorted(processes), list(range(RANKS)))
        os.kill(processes[rank], sign)
        struck = time.monotonic()
        _, errors = job.communicate(timeout=60)
        seconds = time.monotonic() - struck
        time.sleep(0.2)
        self.assertEqual([p for p in processes.values() if is_alive(p)], [], "left behind")
        records = {}
        for file in (run / "flight_record").glob("rank-*.json"):
            record = json.loads(file.read_text())
            records[record["rank"]] = record
        return job.returncode, seconds, errors, records

    def check_records(self, records, lost_rank):
        self.assertEqual(set(records) - {lost_rank}, set(range(RANKS)) - {lost_rank})
        for rank in set(records) - {lost_rank}:
            self.assertEqual(records[rank]["world_size"], RANKS)
            self.assertIn(f"rank {lost_rank}", records[rank]["reason"])
            self.assertLessEqual({"world"}, {group["name"] for group in records[rank]["groups"]})
            self.assertIn(records[rank]["collectives"][-1]["operation"], ("all_gather", "reduce_scatter", "all_reduce"))

    def test_stopped_rank(self):
        for rank in (2, 0):
            with self.subTest(rank=rank):
                code, seconds, errors, records = self.strike(rank, signal.SIGSTOP)
                self.assertEqual(code, 1, errors)
                self.assertLess(seconds, TIMEOUT_SECONDS + 5, errors)
                line = next(line for line in errors.splitlines() if "timed out" in line)
                self.assertRegex(line, r"#\d+ \w+ of \d+ bytes of \w+ in group \w+")
                self.assertIn(f"rank {rank} ", line)
                self.check_records(records, rank)

    def test_killed_rank(self):
        for rank in (3, 0):
            with self.subTest(rank=rank):
                code, seconds, errors, records = self.strike(rank, signal.SIGKILL)
                self.assertNotEqual(code, 0, errors)
                self.assertLess(seconds, 10, errors)
                self.assertRegex(errors, rf"rank {rank} .*died")
                self.check_records(records, rank)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
