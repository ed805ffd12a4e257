"""A training run that saves after every step is killed at random moments and started again, many times.

    killed_run_test.py NARROWGAUGE [--kills N] [--seed N]

After every kill: each checkpoint without .tmp is good to its last byte, `latest` names a good one, and none is older
than the newest one known to be complete before. At the end the run goes on to its last step. Every second run has two
ranks; saving is beside training or not, in turn.
"""
import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

from tiny_run import TinyRuns


def newest_good(runs, name):
    """The step that a restart would take, with every checkpoint verified; 0 without any."""
    code, output, errors = runs.checkpoint("verify", runs.folder / name, "--json")
    verified = json.loads(output)
    for result in verified["checkpoints"]:
        assert result["damage"] == "", result
    if not verified["checkpoints"]:
        return 0
    assert code == 0, errors
    listed = json.loads(runs.checkpoint("list", runs.folder / name, "--json")[1])["checkpoints"]
    assert listed[0]["latest"] or not any(line["latest"] for line in listed), listed
    return listed[0]["step"]


def kill_once(runs, name, pause, kill):
    """One start and one SIGKILL, `pause` seconds later, to every process of it. Whether it ended before."""
    mode = "async" if kill % 4 < 2 else "disabled"
    process = runs.start(name, "training.steps=1000000", "checkpoint.interval=1", "checkpoint.keep_latest_k=2",
                         f"checkpoint.async_mode={mode}", "training.global_batch_size=4", ranks=1 + kill % 2,
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    time.sleep(pause)
    assert process.poll() is None, process.stderr.read()
    os.killpg(process.pid, signal.SIGKILL)  # mpirun; its ranks end with it
    process.wait()
    kill_ranks(process.pid)
    process.stderr.close()


def kill_ranks(session):
    """mpirun gives its ranks process groups of their own, in its session."""
    while True:
        ranks = []
        for entry in os.listdir("/proc"):
            try:
                if entry.isdigit() and os.getsid(int(entry)) == session:
                    state = open(f"/proc/{entry}/stat").read().rpartition(")")[2].split()[0]
                    ranks += [] if state == "Z" else [int(entry)]
            except (ProcessLookupError, FileNotFoundError):
                pass
        if not ranks:
            return
        for rank in ranks:
            try:
                os.kill(rank, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.005)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", metavar="NARROWGAUGE")
    parser.add_argument("--kills", type=int, default=14)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        runs = TinyRuns(arguments.program, folder)
        newest, advanced = 0, 0
        longest = [2.0, 4.0]  # seconds, by ranks: follows the machine, so that most kills come while it saves
        for kill in range(arguments.kills):
            which = kill % 2
            kill_once(runs, "run", chance.uniform(0.3, longest[which]), kill)
            if not runs.store("run").exists():  # killed before anything was written
                longest[which] *= 1.3
                continue
            step = newest_good(runs, "run")
            assert step >= newest, f"kill {kill}: step {newest} was complete, now {step} is the newest"
            advanced += step > newest
            longest[which] *= 0.9 if step > newest else 1.2
            newest = step
            if kill % 50 == 49:
                print(f"{kill + 1} kills, {advanced} of them after a new checkpoint, step {newest}", flush=True)
        assert advanced > arguments.kills // 5, f"only {advanced} of {arguments.kills} kills came after a save"
        runs.train("run", f"training.steps={newest + 3}", "training.global_batch_size=4",
                   "checkpoint.keep_latest_k=2")
        assert newest_good(runs, "run") == newest + 3
        leftovers = [path.name for path in runs.store("run").iterdir() if path.suffix]
        assert not leftovers, leftovers
        print(f"{arguments.kills} kills, {advanced} after a new checkpoint; every checkpoint good, none lost, "
              f"the run went on to step {newest + 3}")


if __name__ == "__main__":
    main()
