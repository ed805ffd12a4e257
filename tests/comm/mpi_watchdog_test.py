"""mpi_watchdog_test.py PROGRAM: four MPI ranks exchange tensors; one is stopped, or killed. The others end the job in
time, say which rank is to blame, leave their flight records, and no process stays behind."""
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAM = sys.argv.pop(1)
RANKS = 4
TIMEOUT = 3.0
START = 60.0  # the four processes of a loaded machine


def is_alive(process):
    try:
        state = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


class Watchdog(unittest.TestCase):
    def start(self, directory):
        self.job = subprocess.Popen(
            ["bash", "-c", "source tests/support/mpirun.sh; mpirun_ranks \"$@\"", "--",
             str(RANKS), PROGRAM, str(int(1000 * TIMEOUT)), str(directory)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        self.addCleanup(self.end)
        files = [directory / f"process-{rank}" for rank in range(RANKS)]
        end = time.monotonic() + START
        while not all(file.exists() and file.read_text().endswith("\n") for file in files):
            self.assertLess(time.monotonic(), end, "the ranks did not start")
            self.assertIsNone(self.job.poll(), "the job ended by itself")
            time.sleep(0.05)
        return [int(file.read_text()) for file in files]

    def end(self):
        if self.job.poll() is None:
            os.killpg(self.job.pid, signal.SIGKILL)
        self.job.stdout.close()
        self.job.wait()

    def strike(self, rank, sign, limit):
        """Sends a signal to a rank; returns the job's exit code, output and flight records by rank."""
        with tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR")) as folder:
            directory = pathlib.Path(folder)
            processes = self.start(directory)
            os.kill(processes[rank], sign)
            struck = time.monotonic()
            output, _ = self.job.communicate(timeout=limit + 30)
            took = time.monotonic() - struck
            print(f"rank {rank}, {sign.name}: ended after {took:.1f} s\n{output}")
            self.assertLess(took, limit, output)
            time.sleep(0.2)
            self.assertEqual([p for p in processes if is_alive(p)], [], "left behind")
            records = {}
            for file in (directory / "flight_record").glob("*"):
                record = json.loads(file.read_text())
                self.assertEqual(file.name, f"rank-{record['rank']}.json")
                records[record["rank"]] = record
            return self.job.returncode, output, records

    def check_records(self, records, struck):
        self.assertEqual(set(records) | {struck}, set(range(RANKS)), "the survivors' records")
        for rank, record in records.items():
            if rank == struck:
                continue
            self.assertEqual(record["world_size"], RANKS)
            self.assertIn(f"rank {struck}", record["reason"])
            self.assertEqual({group["name"] for group in record["groups"]}, {"world", "shard", "replicate"})
            last = record["collectives"][-1]
            self.assertIn(last["operation"], ("all_gather", "all_reduce"))
            self.assertIn(last["group"], ("world", "shard"))
            self.assertIsNone(last["seconds"])
            self.assertGreater(last["bytes"], 0)

    def check_stopped(self, rank):
        code, output, records = self.strike(rank, signal.SIGSTOP, TIMEOUT + 5)
        self.assertEqual(code, 1, output)
        self.assertEqual(output.count("collective timed out"), 1, "told once")
        line = next(line for line in output.splitlines() if "collective timed out" in line)
        self.assertRegex(line, r"#\d+ (all_gather|all_reduce) of \d+ bytes of (Float|Int) in group (shard|world)")
        where = r"rank 0 keeps the board and is" if rank == 0 else rf"(not arrived|silent since): .*rank {rank} \(.*"
        self.assertRegex(line, where + r" ?silent for \d\.\d s: stopped\?")
        self.assertNotIn("has died", output, "rank 0 runs again while the job is ended, and keeps quiet")
        self.check_records(records, rank)

    def check_killed(self, rank):
        code, output, records = self.strike(rank, signal.SIGKILL, 10)
        self.assertNotEqual(code, 0, output)
        told = re.findall(rf"^rank {rank} .*has died", output, re.MULTILINE)
        self.assertEqual(len(told), 1, "told once")
        self.check_records(records, rank)

    def test_a_stopped_rank(self):
        self.check_stopped(2)

    def test_rank_0_stopped(self):
        self.check_stopped(0)

    def test_a_suspended_job_goes_on(self):
        with tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR")) as folder:
            processes = self.start(pathlib.Path(folder))
            for sign, seconds in ((signal.SIGSTOP, TIMEOUT + 2), (signal.SIGCONT, TIMEOUT + 2)):
                for process in processes:
                    os.kill(process, sign)
                time.sleep(seconds)
            self.assertIsNone(self.job.poll(), "the watchdogs took the suspension for a failure")
            self.assertFalse((pathlib.Path(folder) / "flight_record").exists())

    def test_a_killed_rank(self):
        self.check_killed(2)

    def test_rank_0_killed(self):
        self.check_killed(0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
