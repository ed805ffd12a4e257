"""The front binary as its users meet it: output, exit codes, and what it hands to narrowgauge_torch.

    command_line_binary_test.py NARROWGAUGE
"""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

BINARY = pathlib.Path(sys.argv.pop(1)).resolve()
COMMANDS = ["train", "validate", "generate", "eval", "export", "import", "tokenizer", "data"]
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
            result = run(command, "--help")
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn("narrowgauge " + command, result.stdout)
            self.assertEqual(result.stdout, run("help", command).stdout)
        for same in (["-h"], ["help"], ["help", "--help"], ["help", "help"]):
            self.assertEqual(run(*same).stdout, overview.stdout)
        self.assertIn("\n## optimizer\n", run("help", "config").stdout)

    def test_version(self):
        self.assertRegex(run("--version").stdout, r"^narrowgauge \d+\.\d+\.\d+\n$")

    def test_mistakes_in_the_command(self):
        self.fails(run(), 2, "usage: narrowgauge COMMAND")
        self.fails(run("trian"), 2, "narrowgauge trian: unknown command trian; did you mean train?")
        self.fails(run("serve"), 2, "the commands are train, validate, ")
        self.fails(run("help", "trian"), 2, "did you mean train?")
        self.fails(run("--hlep"), 2, "unknown command --hlep")
        self.fails(run(""), 2, "unknown command")

    def test_mistakes_in_arguments(self):
        self.fails(run("train"), 2, "narrowgauge train: expected CONFIG", "see narrowgauge train --help")
        self.fails(run("generate", "--prompt", "x"), 2, "expected --model DIR")
        self.fails(run("eval", "--model", "m", "--data", "d", "--seq-len", "x"), 2, '--seq-len: expected an integer')
        self.fails(run("export"), 2, "expected RUN")
        self.fails(run("import", "x"), 2, "expected --output DIR")

    def test_validate_prints_the_resolved_configuration(self):
        result = run("validate", self.config, "training.steps=7", "--world-size", "2")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertTrue(result.stdout.startswith(f"# {self.config}: ok\n# 2 ranks: 1 replicas x 2 shards;"))
        self.assertIn("\ntraining:\n  steps: 7\n  seq_len: 2048\n", result.stdout)
        resolved = self.folder / "resolved.yaml"
        resolved.write_text(result.stdout)
        body = result.stdout.split("\n", 2)[2]
        self.assertEqual(run("validate", resolved).stdout, f"# {resolved}: ok\n" + body)

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

    def test_full_disk_is_a_failure(self):
        with open("/dev/full", "w") as full:
            result = subprocess.run([BINARY, "validate", self.config], stdout=full, stderr=subprocess.PIPE,
                                    text=True, timeout=60)
        self.assertEqual(result.returncode, 1)
        self.assertIn("standard output", result.stderr)

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
        for other in (["generate", "--model", "m", "--prompt", "-"], ["eval", "--model", "m", "--data", "d"],
                      ["export", "r"], ["import", "f", "--output", "o"]):
            self.assertEqual(run(*other, binary=front).stdout, f"{other}\n")


if __name__ == "__main__":
    unittest.main()
