"""The front binary as its users meet it: output, exit codes, and what it hands to narrowgauge_torch.

    command_line_binary_test.py NARROWGAUGE
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

BINARY = pathlib.Path(sys.argv.pop(1)).resolve()
COMMANDS = ["train", "validate", "plan", "report", "bench", "bench convergence", "generate", "eval", "quantize", "export", "import",
            "checkpoint list", "checkpoint verify", "checkpoint diff", "checkpoint export", "checkpoint prune", "tokenizer train", "tokenizer encode",
            "tokenizer decode", "data prepare", "data inspect"]
MINIMAL = """\
job: {run_dir: x}
tokenizer: {kind: bytes}
data: {train: [a.txt]}
model: {dim: 64, num_heads: 4, num_layers: 2, ffn_dim: 128}
"""


def run(*arguments, binary=BINARY, **environment):
    return subprocess.run([binary, *arguments], capture_output=True, text=True, timeout=60,
                          env={"PATH": os.environ["PATH"], **environment})


class FrontBinary(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.config = self.folder / "c.yaml"
        self.config.write_text(MINIMAL)

    def fails(self, result, code, *texts):
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertEqual(result.stdout, "")
        for text in texts:
            self.assertIn(text, result.stderr)

    def test_links_no_torch(self):
        libraries = subprocess.run(["ldd", BINARY], capture_output=True, text=True, check=True).stdout
        self.assertIn("libyaml-cpp", libraries)
        for heavy in ("torch", "c10", "cuda", "mpi", "python"):
            self.assertNotIn("lib" + heavy, libraries)

    def test_help_of_everything(self):
        overview = run("--help")
        self.assertEqual(overview.returncode, 0)
        for command in COMMANDS:
            self.assertIn(f"\n  {command} ", overview.stdout)
            words = command.split()
            result = run(*words, "--help")
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn("usage: narrowgauge " + command, result.stdout)
            self.assertEqual(result.stdout, run("help", *words).stdout)
            self.assertEqual(result.stdout, run(*words, "-h").stdout)
        for group in ("checkpoint", "tokenizer", "data"):
            result = run(group, "--help")
            self.assertEqual(result.returncode, 0, result.stderr)
            for command in COMMANDS:
                self.assertEqual(f"\n  {command} " in result.stdout, command.startswith(group + " "))
            self.assertEqual(result.stdout, run("help", group).stdout)
        train = run("train", "--help").stdout
        for text in ("help config", "docs/CONFIG.md", "job.run_dir holds a checkpoint", "SIGTERM", "exit code 75"):
            self.assertIn(text, train)
        tests = run("test", "--help")
        self.assertEqual((tests.returncode, "narrowgauge test [--slow]" in tests.stdout), (0, True))
        for same in (["-h"], ["help"], ["help", "--help"], ["help", "help"]):
            self.assertEqual(run(*same).stdout, overview.stdout)
        self.assertIn("\n## optimizer\n", run("help", "config").stdout)

    def test_version(self):
        self.assertRegex(run("--version").stdout, r"^narrowgauge \d+\.\d+\.\d+\n$")

    def test_mistakes_in_the_command(self):
        self.fails(run(), 2, "usage: narrowgauge COMMAND")
        for arguments in (["trian"], ["trian", "--help"], ["trian", "x.yaml"]):
            self.fails(run(*arguments), 2, "narrowgauge: unknown command trian; did you mean train?\n"
                       "see narrowgauge --help\n")
        for arguments in (["tokenizer", "trian"], ["tokenizer", "trian", "--help"], ["help", "tokenizer", "trian"]):
            self.fails(run(*arguments), 2, "unknown command trian; did you mean train?")
        self.fails(run("tokenizer"), 2, "narrowgauge tokenizer: expected a command after it: train, encode, decode")
        self.fails(run("data", "x"), 2, "narrowgauge data: unknown command x; the commands are prepare, inspect")
        self.fails(run("help", "train", "x"), 2, "unexpected argument x after help train")
        self.fails(run("test"), 2, "expected the launcher to run the tests: ./narrowgauge test")
        self.fails(run("serve"), 2, "the commands are train, validate, ")
        self.fails(run("help", "trian"), 2, "did you mean train?")
        self.fails(run("--hlep"), 2, "unknown command --hlep")
        self.fails(run(""), 2, "unknown command")

    def test_mistakes_in_arguments(self):
        self.fails(run("train"), 2, "narrowgauge train: expected CONFIG", "see narrowgauge train --help")
        self.fails(run("generate", "--prompt", "x"), 2, "expected --model DIR")
        self.fails(run("eval", "--model", "m", "--data", "d", "--seq-len", "x"), 2, '--seq-len: expected an integer')
        self.fails(run("export"), 2, "expected MODEL")
        self.fails(run("import", "x"), 2, "expected --output DIR")
        self.fails(run("data", "prepare"), 2, "narrowgauge data prepare: expected SOURCE",
                   "see narrowgauge data prepare --help")
        self.fails(run("tokenizer", "encode", "--tokenzier", "x"), 2, "did you mean --tokenizer?")

    def test_validate_prints_the_resolved_configuration(self):
        result = run("validate", self.config, "training.steps=7", "--world-size", "2")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertTrue(result.stdout.startswith(f"# {self.config}: ok\n# 2 ranks: 1 replicas x 2 shards;"))
        self.assertIn("\ntraining:\n  steps: 7\n  seq_len: 2048\n", result.stdout)
        resolved = self.folder / "resolved.yaml"
        resolved.write_text(result.stdout)
        body = result.stdout.split("\n", 2)[2]
        self.assertEqual(run("validate", resolved).stdout, f"# {resolved}: ok\n" + body)

    def test_plan_needs_the_configuration_alone(self):
        started = time.monotonic()
        result = run("plan", self.config, "training.seq_len=64")
        seconds = time.monotonic() - started
        self.assertEqual(result.returncode, 0, result.stderr)
        for text in ("memory of a rank at its fullest", "  parameters ", "fits: yes", " tokens/s"):
            self.assertIn(text, result.stdout)
        self.assertLess(seconds, 1.0)  # 10 ms on an idle machine
        planned = json.loads(run("plan", self.config, "--json", "--gpu", "H200", "--gpus", "4", "--nodes", "2").stdout)
        self.assertEqual((planned["world_size"], planned["gpu"], planned["fits"]), (8, "H200", True))

    def test_plan_tells_what_it_does_not_know(self):
        result = run("plan", self.config, "--gpu", "X9000")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("time: peak unknown, pass --peak-tflops\n", result.stdout)
        self.assertNotIn("tokens/s", result.stdout)
        self.assertIn("of the bf16 peak", run("plan", self.config, "--gpu", "X9000", "--peak-tflops", "50").stdout)
        large = ["model.dim=8192", "model.num_layers=80", "model.ffn_dim=28672", "model.num_heads=64"]
        result = run("plan", self.config, *large, "--gpu", "H100")
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn("fits: no", result.stdout)
        self.assertIn("the fastest that fits: ", result.stdout)
        self.fails(run("plan", self.config, "model.dimm=3"), 2, "did you mean model.dim?")
        self.fails(run("plan", self.config, "--gpus", "0"), 2, "--gpus")

    def test_dry_run_looks_at_what_a_run_needs(self):
        text = self.folder / "a.txt"
        text.write_text("some text")
        good = [self.config, "--dry-run", f"data.train=[{text}]", f"job.run_dir={self.folder}/run"]
        result = run("train", *good)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        for line in ("ok      data: 1 files, 9 bytes\n", "ok      model: ", "ok      memory: ", "ok      disk: ", "ok      ranks: "):
            self.assertIn(line, result.stdout)
        self.assertFalse((self.folder / "run").exists())
        result = run("train", self.config, "--dry-run", "data.train=[missing/*.txt]", "model.dim=16384", "model.num_layers=200",
                     "model.ffn_dim=65536", "training.device=cpu")
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn("problem data: ", result.stdout)
        self.assertIn("problem memory: ", result.stdout)
        self.assertIn("problem disk: ", result.stdout)
        result = run("train", *good, "training.global_batch_size=8", OMPI_COMM_WORLD_SIZE="3")
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn("problem memory: training.global_batch_size: expected a multiple", result.stdout)
        self.assertEqual(run("train", *good, OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="1").stdout, "")

    def test_report_of_a_run(self):
        run_folder = self.folder / "r"
        run_folder.mkdir()
        (run_folder / "metrics.jsonl").write_text('{"step":1,"loss":2.5}\n{"step":2,"loss":1.5}\n{"step":3,"lo')
        result = run("report", run_folder)
        self.assertEqual((result.returncode, result.stdout), (0, f"{run_folder}/report.html\n"), result.stderr)
        self.assertIn("<svg", (run_folder / "report.html").read_text())
        result = run("report", run_folder, "--csv")
        self.assertEqual((result.returncode, result.stdout), (0, f"{run_folder}/metrics.csv: 2 rows\n"), result.stderr)
        self.assertEqual((run_folder / "metrics.csv").read_text(), "step,loss\n1,2.5\n2,1.5\n")
        self.fails(run("report", self.folder / "none"), 1, "cannot read", "expected a run directory")
        self.fails(run("report", run_folder, "--output", self.folder / "no/such/x.html"), 1, "x.html")
        self.fails(run("report"), 2, "expected RUN")

    def test_other_readers_understand_the_resolved_configuration(self):
        import yaml
        prompt = "tab\t \"quoted\" \\ # é\n"
        result = run("validate", self.config, "optimizer.lr=1e-5", "generation.prompt=" + prompt,
                     "job.run_dir=yes", "data.train=[1e3, \"*.txt\"]")
        resolved = yaml.safe_load(result.stdout)
        self.assertEqual(resolved["optimizer"]["lr"], 1e-5)
        self.assertEqual(resolved["generation"]["prompt"], prompt)
        self.assertEqual(resolved["job"]["run_dir"], "yes")
        self.assertEqual(resolved["data"]["train"], ["1e3", "*.txt"])
        self.assertIs(resolved["export"]["enable"], True)

    def test_mistakes_in_the_configuration(self):
        for command in ("validate", "train"):
            self.fails(run(command, self.config, "training.stepz=7"), 2,
                       f'narrowgauge {command}: override "training.stepz=7": unknown key training.stepz; '
                       "did you mean training.steps?")
            self.fails(run(command, self.folder / "missing.yaml"), 2, "No such file or directory")
        self.fails(run("validate", self.config, "--world-size", "3", "training.global_batch_size=8"), 2,
                   "training.global_batch_size: expected a multiple of training.local_batch_size (8) x 3 ranks")
        self.fails(run("train", self.config, "training.global_batch_size=8", OMPI_COMM_WORLD_SIZE="3"), 2,
                   "x 3 ranks")

    def test_one_rank_tells_a_mistake_of_all(self):
        told = run("train", self.config, "training.stepz=7", OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="0")
        self.fails(told, 2, "narrowgauge train: override")
        # mpirun ends the others when rank 0 has ended; one that it leaves alone speaks at last.
        for name in ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"):
            with subprocess.Popen([BINARY, "train", self.config, "training.stepz=7"], env={name: "1"},
                                  stderr=subprocess.PIPE, text=True) as other:
                with self.assertRaises(subprocess.TimeoutExpired):
                    other.wait(0.3)
                other.terminate()
                self.assertEqual(other.communicate()[1], "")
        late = run("train", self.config, "training.stepz=7", OMPI_COMM_WORLD_RANK="1")
        self.fails(late, 2, "rank 1: narrowgauge train: override")

    def test_under_mpirun_the_mistake_appears_once(self):
        mpirun = shutil.which("mpirun")
        self.assertIsNotNone(mpirun, "mpirun is part of the set-up")
        result = subprocess.run([mpirun, "-np", "3", "--oversubscribe", BINARY, "train", self.config, "training.stepz=7"],
                                capture_output=True, text=True, timeout=60,
                                env={**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"})
        self.assertNotEqual(result.returncode, 0)
        self.assertEqual(result.stderr.count("unknown key training.stepz"), 1, result.stderr)

    def test_full_disk_is_a_failure(self):
        with open("/dev/full", "w") as full:
            result = subprocess.run([BINARY, "validate", self.config], stdout=full, stderr=subprocess.PIPE,
                                    text=True, timeout=60)
        self.assertEqual(result.returncode, 1)
        self.assertEqual(result.stderr, "narrowgauge validate: expected to write to standard output, got an error\n")
        for arguments, text in ((["tokenizer", "encode", "--tokenizer", "bytes"], "x\n" * 100000),
                                (["data", "inspect", self.config], "")):
            (self.folder / "a.bin").write_bytes(bytes(1000))
            arguments = [self.folder / "a.bin" if a == self.config else a for a in arguments]
            with open("/dev/full", "w") as full:
                result = subprocess.run([BINARY, *arguments], stdout=full, stderr=subprocess.PIPE, input=text,
                                        text=True, timeout=60)
            self.assertEqual(result.returncode, 1)
            self.assertEqual(result.stderr.count("standard output"), 1, result.stderr)

    def test_work_goes_to_the_sibling_with_the_same_arguments(self):
        front = shutil.copy(BINARY, self.folder / "narrowgauge")
        arguments = ["train", str(self.config), "data.train=[a b.txt,c.txt]", "generation.prompt=\n$x"]
        self.fails(run(*arguments, binary=front), 1, "narrowgauge_torch, got No such file or directory",
                   "build //trainer:narrowgauge_torch")
        sibling = self.folder / "narrowgauge_torch"
        sibling.write_text("#!/usr/bin/env python3\nimport sys\nprint(sys.argv[1:])\nsys.exit(75)\n")
        sibling.chmod(0o755)
        link = self.folder / "elsewhere" / "ng"
        link.parent.mkdir()
        link.symlink_to(front)
        for binary in (front, link):
            result = run(*arguments, binary=binary)
            self.assertEqual(result.returncode, 75, result.stderr)
            self.assertEqual(result.stdout, f"{arguments}\n")
        for name in ("generate --model m", "eval --model m --data d", "export r", "import f --output o"):
            self.fails(run(*name.split(), binary=front, OMPI_COMM_WORLD_SIZE="2"), 2,
                       "expected one process, got 2 ranks; only train runs on several, so start "
                       f"{name.split()[0]} without mpirun")
            self.assertEqual(run(*name.split(), binary=front, OMPI_COMM_WORLD_SIZE="1").returncode, 75)
        for other in (["generate", "--model", "m", "--prompt", "-"], ["eval", "--model", "m", "--data", "d"],
                      ["export", "r"], ["import", "f", "--output", "o"],
                      ["quantize", "--model", "m", "--output", "o", "--scheme", "mxfp4"]):
            self.assertEqual(run(*other, binary=front).stdout, f"{other}\n")


if __name__ == "__main__":
    unittest.main()
