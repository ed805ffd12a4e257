"""narrowgauge checkpoint list | verify | diff | export | prune, and what a run does about damage, changes and a full disk.

Argument: narrowgauge (the binary; narrowgauge_torch beside it).
"""
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import torch
from safetensors.torch import load_file

from tiny_run import TinyRuns

PROGRAM = os.path.abspath(sys.argv[1])
SHORT = ["training.global_batch_size=4", "training.steps=6", "checkpoint.interval=2"]


class CheckpointCommand(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.pristine = pathlib.Path(folder.name)
        runs = TinyRuns(PROGRAM, folder.name)
        runs.train("one", *SHORT)
        runs.train("two", *SHORT, ranks=2)

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.runs = TinyRuns(PROGRAM, folder.name, text=self.pristine / "text.txt")
        self.folder = pathlib.Path(folder.name)
        for name in ("one", "two", "cache"):
            shutil.copytree(self.pristine / name, self.folder / name)
        self.store = self.runs.store("one")

    def flip(self, path, offset=-1):
        content = bytearray(path.read_bytes())
        content[offset] ^= 1
        path.write_bytes(content)

    def names(self):
        return sorted(path.name for path in self.store.iterdir())

    def test_list(self):
        (self.store / "step-00000009.tmp").mkdir()
        code, output, _ = self.runs.checkpoint("list", self.folder / "one")
        lines = output.splitlines()
        self.assertEqual(code, 0)
        self.assertEqual([line.split()[0] for line in lines],
                         ["step-00000006", "step-00000004", "step-00000002", "step-00000009.tmp"])
        self.assertIn("latest", lines[0])
        self.assertIn("incomplete", lines[3])
        listed = json.loads(self.runs.checkpoint("list", self.store, "--json")[1])
        self.assertEqual(listed["incomplete"], ["step-00000009.tmp"])
        first = listed["checkpoints"][0]
        self.assertEqual((first["step"], first["latest"], first["tokens_seen"], first["world_size"]),
                         (6, True, 6 * 4 * 16, 1))
        (self.store / "step-00000004/manifest.json").unlink()
        self.assertRegex(self.runs.checkpoint("list", self.store)[1], "step-00000004  damaged: .*manifest.json")
        code, _, errors = self.runs.checkpoint("list", self.folder / "cache")
        self.assertEqual(code, 2)
        self.assertIn("neither a run directory nor a folder of checkpoints", errors)

    def test_verify_names_file_and_tensor(self):
        self.assertEqual(self.runs.checkpoint("verify", self.folder / "two")[0], 0)
        path = self.runs.store("two") / "step-00000004/rank-00001.safetensors"
        self.flip(path)
        code, output, _ = self.runs.checkpoint("verify", self.folder / "two")
        self.assertEqual(code, 1)
        self.assertRegex(output, r"rank-00001.safetensors: tensor '(model|optimizer)\.[^']+': expected xxh3")
        self.assertEqual(output.count(": good\n"), 2)
        self.assertEqual(self.runs.checkpoint("verify", path.parent)[0], 1)
        self.assertEqual(self.runs.checkpoint("verify", path.parent.parent / "step-00000006")[0], 0)
        report = json.loads(self.runs.checkpoint("verify", self.folder / "two", "--json")[1])
        self.assertEqual((report["good"], len(report["checkpoints"])), (False, 3))
        os.truncate(path, path.stat().st_size - 1)
        self.assertRegex(self.runs.checkpoint("verify", path.parent)[1], "rank-00001.safetensors: expected .* tensor '")

    def test_diff(self):
        code, output, _ = self.runs.checkpoint("diff", self.folder / "one", self.folder / "one")
        self.assertEqual((code, "hold the same" in output), (0, True), output)
        code, output, _ = self.runs.checkpoint("diff", self.store / "step-00000004", self.store / "step-00000006")
        self.assertEqual(code, 1)
        self.assertIn("state.step: 4 against 6", output)
        self.assertRegex(output, r"model\.layers\.0\.\S+: \d+ of \d+ elements differ, by at most ")
        # Written by one rank and by two: sums round differently, so values may differ, shapes and names not.
        report = json.loads(self.runs.checkpoint("diff", self.folder / "one", self.folder / "two", "--json")[1])
        for line in report["differences"]:
            self.assertIn("elements differ", line["difference"], line)
        code, _, errors = self.runs.checkpoint("diff", self.folder / "one")
        self.assertEqual((code, "expected two checkpoints" in errors), (2, True))

    def test_export_is_whole_and_readable(self):
        output = self.folder / "weights.safetensors"
        self.assertEqual(self.runs.checkpoint("export", self.folder / "two", "--output", output)[0], 0)
        tensors = load_file(output)
        manifest = json.loads((self.runs.store("two") / "step-00000006/manifest.json").read_text())
        shapes = {name.removeprefix("model."): entry["shape"] for name, entry in manifest["tensors"].items()
                  if name.startswith("model.")}
        self.assertEqual({name: list(tensor.shape) for name, tensor in tensors.items()}, shapes)
        # The rows of both ranks, in order.
        parts = [load_file(self.runs.store("two") / f"step-00000006/rank-0000{rank}.safetensors") for rank in (0, 1)]
        for name, tensor in tensors.items():
            rows = [part["model." + name] for part in parts if "model." + name in part]
            self.assertTrue(torch.equal(tensor, torch.cat(rows)), name)
        code, _, errors = self.runs.checkpoint("export", self.folder / "two", "--output", output, "--prefix", "x.")
        self.assertEqual((code, "no tensor has a name" in errors), (1, True))
        self.flip(self.runs.store("two") / "step-00000006/rank-00000.safetensors")
        output.unlink()
        self.assertEqual(self.runs.checkpoint("export", self.folder / "two", "--output", output, "--prefix", "")[0], 1)
        self.assertFalse(output.exists())

    def test_prune(self):
        (self.store / "step-00000001.tmp").mkdir()
        code, output, _ = self.runs.checkpoint("prune", self.folder / "one", "--keep", "1", "--dry-run")
        self.assertEqual((code, output.count("would delete")), (0, 3))
        with open(self.folder / "one/lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            code, _, errors = self.runs.checkpoint("prune", self.folder / "one", "--keep", "1")
            self.assertEqual((code, "a process trains in" in errors), (1, True))
            # However the folder is written.
            for path in (self.store, f"{self.store}/", f"{self.store}/.", f"{self.folder}/one/"):
                with self.subTest(path=path):
                    code, _, errors = self.runs.checkpoint("prune", path, "--keep", "1")
                    self.assertEqual((code, "a process trains in" in errors), (1, True), errors)
        self.assertEqual(len(self.names()), 5)
        self.assertEqual(self.runs.checkpoint("prune", self.folder / "one", "--keep", "2")[0], 0)
        self.assertEqual(self.names(), ["latest", "step-00000004", "step-00000006"])
        (self.store / "step-00000006/manifest.json").unlink()
        self.assertIn("nothing to delete", self.runs.checkpoint("prune", self.folder / "one", "--keep", "1")[1])
        self.assertEqual(self.runs.checkpoint("prune", self.folder / "one", "--keep", "0")[0], 2)

    def test_damage_is_passed_over_and_told(self):
        self.flip(self.store / "step-00000006/rank-00000.safetensors")
        errors = self.runs.train("one", "training.global_batch_size=4", "training.steps=8")
        self.assertRegex(errors, "checkpoint step-00000006 is damaged and passed over: .*rank-00000.safetensors: tensor '")
        self.assertRegex(errors, "going on from .*step-00000004 instead")
        self.assertEqual([line["step"] for line in self.runs.metrics("one")], list(range(1, 9)))
        for path in self.store.glob("step-*/rank-00000.safetensors"):
            self.flip(path, offset=-2)  # the last byte of one is flipped already
        process = self.runs.start("one", "training.global_batch_size=4", "training.steps=9")
        _, errors = process.communicate()
        self.assertEqual(process.returncode, 1)
        self.assertIn("is damaged; remove the folder to start the run anew", errors)

    def test_changes_are_told_or_refused(self):
        errors = self.runs.train("one", "training.global_batch_size=4", "training.steps=7", "optimizer.lr=1.0e-4")
        self.assertIn("changed since step-00000006 was saved: training.steps: 6 -> 7\n", errors)
        self.assertRegex(errors, "changed since step-00000006 was saved: optimizer.lr: 0.003 -> (0.0001|1.0e-04|1e-04)")
        for change, key in ((["training.seed=7"], "training.seed"), (["optimizer.name=Adam"], "optimizer.name"),
                            (["training.global_batch_size=8"], "training.global_batch_size")):
            overrides = ["training.global_batch_size=4", "training.steps=8", *change]
            process = self.runs.start("one", *overrides)
            _, errors = process.communicate()
            self.assertEqual(process.returncode, 2, errors)
            self.assertIn(f"checkpoint.allow_changes=[{key}]", errors)
            shutil.copytree(self.folder / "one", self.folder / key)
            errors = self.runs.train(key, *overrides, f"checkpoint.allow_changes=[{key}]")
            self.assertIn(f"changed since step-00000007 was saved: {key}: ", errors)

    def test_a_stop_signal_waits_for_the_save_beside_it(self):
        for ranks in (1, 2):
            name = f"stopped {ranks}"
            process = self.runs.start(name, "training.steps=1000000", "checkpoint.interval=1", "checkpoint.keep_latest_k=2",
                                      "training.global_batch_size=4", ranks=ranks)
            while not (self.runs.store(name) / "latest").exists():
                self.assertIsNone(process.poll())
                time.sleep(0.02)
            process.send_signal(signal.SIGUSR1)
            _, errors = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 75, errors)
            last = self.runs.metrics(name)[-1]["step"]
            listed = json.loads(self.runs.checkpoint("list", self.folder / name, "--json")[1])
            self.assertEqual((listed["checkpoints"][0]["step"], listed["incomplete"]), (last, []))
            self.assertEqual(self.runs.checkpoint("verify", self.folder / name)[0], 0)

    def fill_and_free(self, store, fill, free, prepare=""):
        """A run whose disk is full for a while: `fill` and `free` are shell commands that know $run, its process."""
        arguments = "training.steps=600 checkpoint.interval=10 checkpoint.keep_latest_k=2 training.global_batch_size=4"
        errors = self.folder / "errors"
        script = f"""
            trap '' XFSZ
            mkdir -p {store}
            {prepare}
            {PROGRAM} train {self.runs.config("full")} {arguments} & run=$!
            until [ -e {store}/latest ]; do kill -0 $run || exit 98; sleep 0.02; done
            {fill}
            until grep -q 'no checkpoint' {errors}; do kill -0 $run || exit 97; sleep 0.02; done
            kill -STOP $run; cp -r {store} {self.folder}/while_full; kill -CONT $run
            {free}
            wait $run; code=$?
            cp -r {store} {self.folder}/after
            exit $code"""
        with open(errors, "w") as sink:
            code = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script] if prepare else
                                  ["bash", "-c", script], stderr=sink, timeout=120).returncode
        self.assertEqual(code, 0, errors.read_text())
        self.assertIn("training goes on, older checkpoints stand, failures so far: 1\n", errors.read_text())
        self.assertEqual([line["step"] for line in self.runs.metrics("full")], list(range(1, 601)))
        for copy in ("while_full", "after"):  # the last good ones were never touched
            code, output, _ = self.runs.checkpoint("verify", self.folder / copy)
            self.assertEqual(code, 0, output)
        listed = json.loads(self.runs.checkpoint("list", self.folder / "after", "--json")[1])
        self.assertEqual((listed["checkpoints"][0]["step"], listed["incomplete"]), (600, []))
        return errors.read_text()

    def test_full_disk(self):
        store = self.runs.store("full")
        # No file of the run may grow any more, but the soft limit leaves room for its logs.
        told = self.fill_and_free(store, "prlimit --pid $run --fsize=200000:", "prlimit --pid $run --fsize=unlimited:")
        self.assertIn("File too large", told)

    def test_full_file_system(self):
        mount = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", self.folder]
        if subprocess.run(mount, capture_output=True).returncode != 0:
            return  # this machine lets nobody mount: test_full_disk has shown the same by other means
        store = self.runs.store("full")
        told = self.fill_and_free(store, f"head -c 4m /dev/zero >{store}/ballast 2>/dev/null", f"rm {store}/ballast",
                                  prepare=f"mount -t tmpfs -o size=4m tmpfs {store} || exit 99")
        self.assertIn("No space left on device", told)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
