"""The scripts on docs/CLUSTER.md: the Slurm script's signals and exit codes with stand-ins for mpirun and scontrol, and the
MPIJob as YAML.

Argument: docs/CLUSTER.md.
"""
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest

import yaml

PAGE = pathlib.Path(sys.argv[1]).resolve()

# As narrowgauge under mpirun: saves at SIGUSR1, ends with 75; else ends with $STATUS after a moment.
MPIRUN = """#!/bin/bash
echo "$@" > mpirun.arguments
trap 'sleep 0.3; echo saved > saved; exit 75' USR1
touch started
for i in {1..50}; do sleep 0.1; [ -n "$STATUS" ] && exit "$STATUS"; done
exit 99
"""
SCONTROL = """#!/bin/bash
echo "$@" > scontrol.arguments
"""


def block(heading):
    """The first indented block below a heading of the page."""
    text = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return textwrap.dedent(re.search(r"(?:^    .*\n|^\n)+", text[text.index("\n    "):].lstrip("\n"), re.M)[0])


class ClusterPage(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        for name, text in (("mpirun", MPIRUN), ("scontrol", SCONTROL), ("job", block("Slurm"))):
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o755)

    def start(self, **environment):
        path = f"{self.folder}:{os.environ['PATH']}"
        return subprocess.Popen([self.folder / "job"], cwd=self.folder,
                                env=dict(os.environ, PATH=path, SLURM_JOB_ID="123", **environment))

    def test_slurm_job_saves_at_the_signal_and_queues_itself_again(self):
        job = self.start()
        deadline = time.monotonic() + 30
        while not (self.folder / "started").exists():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)
        job.send_signal(signal.SIGUSR1)
        self.assertEqual(job.wait(30), 75)
        self.assertTrue((self.folder / "saved").exists())
        self.assertEqual((self.folder / "scontrol.arguments").read_text(), "requeue 123\n")
        self.assertEqual((self.folder / "mpirun.arguments").read_text(),
                         "-q ./narrowgauge train configs/my.yaml\n")

    def test_slurm_job_ends_as_the_run_ends(self):
        for status in (0, 1, 2):
            with self.subTest(status):
                self.assertEqual(self.start(STATUS=str(status)).wait(30), status)
                self.assertFalse((self.folder / "scontrol.arguments").exists())

    def test_mpi_job_is_a_job_of_the_operator(self):
        job = yaml.safe_load(block("Kubernetes"))
        self.assertEqual((job["apiVersion"], job["kind"]), ("kubeflow.org/v2beta1", "MPIJob"))
        replicas = job["spec"]["mpiReplicaSpecs"]
        worker = replicas["Worker"]["template"]["spec"]
        slots = job["spec"]["slotsPerWorker"] * replicas["Worker"]["replicas"]
        command = replicas["Launcher"]["template"]["spec"]["containers"][0]["command"]
        self.assertEqual(command[command.index("-np") + 1], str(slots))
        self.assertEqual(worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"], job["spec"]["slotsPerWorker"])
        mounted = {mount["name"] for mount in worker["containers"][0]["volumeMounts"]}
        self.assertEqual(mounted, {volume["name"] for volume in worker["volumes"]})


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
