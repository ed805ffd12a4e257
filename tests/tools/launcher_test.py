"""The launcher and the test runner in a small tree, with a stand-in for Bazel: when it builds, and what it passes on.

Arguments: narrowgauge run_tests.sh check_includes.py count_tests.py.
"""
import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

LAUNCHER, *TOOLS = [pathlib.Path(argument).resolve() for argument in sys.argv[1:]]
PROGRAM = """#!/usr/bin/env bash
printf '%s\\n' "$NARROWGAUGE_ROOT" "$@"
exit 75
"""
# Notes its arguments, one line a call, then builds, or reports one passed test. Like Bazel it leaves a server behind.
BAZEL = """#!/usr/bin/env bash
echo "$*" >>"$BAZEL_CALLS"
[ ! -e "$BAZEL_CALLS.fail" ] || exit 2
sleep 30 >/dev/null 2>&1 </dev/null &
echo $! >>"$BAZEL_CALLS.servers"
if [ "$1" = build ]; then
  mkdir -p bazel-bin/trainer
  for name in narrowgauge narrowgauge_torch; do
    rm -f bazel-bin/trainer/$name
    cp "$BAZEL_CALLS.program" bazel-bin/trainer/$name
  done
elif [ "$1" = test ]; then
  for argument in "$@"; do
    case $argument in --build_event_json_file=*) events=${argument#*=} ;; esac
  done
  echo '<testsuites><testsuite tests="1"/></testsuites>' >"$BAZEL_CALLS.xml"
  echo '{"id":{"testResult":{"label":"//a"}},"testResult":{"status":"PASSED","testActionOutput":[{"name":"test.xml",
    "uri":"file://'"$BAZEL_CALLS.xml"'"}]}}' | tr -d '\\n' >"$events"
elif [ "$1" = query ]; then
  echo //tests/gpu:some_test
fi
"""


class Tree(unittest.TestCase):
    """A checkout of a few files, and the environment the launcher runs in."""

    def setUp(self):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())).resolve()
        self.root = folder / "the checkout"
        for name in ("BUILD", "WORKSPACE", ".bazelrc", "nn/BUILD", "nn/layer.h", "trainer/BUILD", "trainer/main.cc",
                     "third_party/BUILD", "tests/BUILD", "tests/some_test.cc", "tools/BUILD"):
            self.write(name, "")
        (self.root / "third_party/site").mkdir()
        shutil.copy(LAUNCHER, self.root / "narrowgauge")
        for tool in TOOLS:
            shutil.copy(tool, self.root / "tools")
        self.write("tools/setup.sh", "#!/usr/bin/env bash\necho setup >>\"$BAZEL_CALLS.setups\"\n", 0o755)
        subprocess.run(["git", "init", "-q", self.root], check=True)

        self.calls_file = folder / "calls"
        (folder / "bin").mkdir()
        (folder / "home").mkdir()
        (folder / "bin/bazel").write_text(BAZEL)
        (folder / "bin/bazel").chmod(0o755)
        (folder / "calls.program").write_text(PROGRAM)
        (folder / "calls.program").chmod(0o755)
        self.folder = folder
        self.lock = folder / f"home/.cache/narrowgauge/build-{os.getuid()}.lock"
        self.environment = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "HOME": str(folder / "home"),
                            "BAZEL_CALLS": str(self.calls_file)}
        self.addCleanup(self.end_servers)

    def end_servers(self):
        servers = pathlib.Path(f"{self.calls_file}.servers")
        for server in servers.read_text().split() if servers.exists() else ():
            try:
                os.kill(int(server), 9)
            except ProcessLookupError:
                pass

    def write(self, name, text, mode=0o644):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def calls(self):
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []

    def run_launcher(self, *arguments, launcher=None, environment=None, cwd=None):
        return subprocess.run([launcher or self.root / "narrowgauge", *arguments], env=environment or self.environment,
                              cwd=cwd or self.folder, capture_output=True, text=True, timeout=20)


class Launcher(Tree):
    def assert_runs(self, builds, **options):
        """Runs the program, which must be reached with its arguments, after so many builds in all."""
        done = self.run_launcher("train", "a b.yaml", **options)
        self.assertEqual(done.stdout, f"{self.root}\ntrain\na b.yaml\n", done.stderr)
        self.assertEqual(done.returncode, 75)
        self.assertEqual(len(self.calls()), builds, self.calls())

    def test_builds_once(self):
        self.assert_runs(1)
        self.assertRegex(self.calls()[0], r"^build .*//trainer:narrowgauge //trainer:narrowgauge_torch$")
        self.assert_runs(1)

    def test_every_change_of_a_source_builds(self):
        self.assert_runs(1)
        self.write("nn/layer.h", "// longer")
        self.assert_runs(2)
        os.utime(self.root / "nn/layer.h", (1e9, 1e9))  # as an archive or a restored backup leaves it
        self.assert_runs(3)
        (self.root / "trainer/main.cc").unlink()
        self.assert_runs(4)
        self.write("nn/kernels/added.cc", "")
        os.utime(self.root / "nn/kernels/added.cc", (1e9, 1e9))
        self.assert_runs(5)
        self.write("float8/BUILD", "")  # a folder nobody told the launcher of
        self.assert_runs(6)
        self.write(".bazelrc", "build --copt=-O3")
        self.assert_runs(7)
        self.assert_runs(7)

    def test_files_outside_of_the_program_do_not_build(self):
        self.assert_runs(1)
        self.write("tests/some_test.cc", "// changed")
        self.write("configs/mine.yaml", "")
        self.write("runs/a/metrics.jsonl", "")
        self.write("tools/__pycache__/count_tests.pyc", "")
        self.assert_runs(1)

    def test_programs_of_another_build_are_not_run(self):
        self.assert_runs(1)
        for name in ("narrowgauge", "narrowgauge_torch"):
            self.write(f"bazel-bin/trainer/{name}", "#!/usr/bin/env bash\necho sanitizer\n", 0o755)
            self.assert_runs(2 if name == "narrowgauge" else 3)
        shutil.move(self.root / "bazel-bin", self.root / "moved")
        self.assert_runs(4)

    def test_failed_build_fails_and_is_tried_again(self):
        self.assert_runs(1)
        self.write("nn/layer.h", "an error")
        fail = pathlib.Path(f"{self.calls_file}.fail")
        fail.touch()
        for _ in range(2):
            done = self.run_launcher("train")
            self.assertEqual(done.returncode, 1)
            self.assertIn("[build] the build failed", done.stderr)
        fail.unlink()
        self.assert_runs(4)

    def test_runs_through_a_link(self):
        (self.folder / "bin/ng").symlink_to(self.root / "narrowgauge")
        self.assert_runs(1, launcher=self.folder / "bin/ng")
        (self.folder / "linked").symlink_to(self.root)
        self.assert_runs(1, launcher=self.folder / "linked/narrowgauge")

    def test_runs_without_a_home(self):
        self.assert_runs(1)
        bare = {name: value for name, value in self.environment.items() if name != "HOME"}
        self.assert_runs(1, environment=bare)
        self.write("nn/layer.h", "// changed")
        self.assert_runs(2, environment=bare | {"NARROWGAUGE_CACHE": str(self.folder / "cache")})

    def test_relative_cache_is_relative_to_the_caller(self):
        self.assert_runs(1, environment=self.environment | {"NARROWGAUGE_CACHE": "my cache"})
        self.assertIn(f"--disk_cache={self.folder}/my cache/bazel ", self.calls()[0])
        self.assertTrue((self.folder / "my cache").is_dir())

    def test_server_of_bazel_does_not_keep_the_lock(self):
        self.assert_runs(1)
        with open(self.lock) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # throws when it is held

    def test_waits_for_another_build_and_says_so(self):
        self.lock.parent.mkdir(parents=True)
        with open(self.lock, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with subprocess.Popen([self.root / "narrowgauge", "train"], env=self.environment, cwd=self.folder, text=True,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as waiting:
                self.assertEqual(waiting.stderr.readline(), "[build] another build is running; waiting\n")
                self.assertEqual(self.calls(), [])
                fcntl.flock(lock, fcntl.LOCK_UN)
                self.assertIn("[build] compiling", waiting.communicate(timeout=20)[1])
                self.assertEqual(waiting.returncode, 75)
        self.assertEqual(len(self.calls()), 1)


class TestRunner(Tree):
    def run_tests(self, *arguments):
        done = self.run_launcher("test", *arguments)
        return done, self.calls()[-1] if self.calls() else None

    def assert_ends_with(self, arguments, expected):
        done, call = self.run_tests(*arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.splitlines()[-1], "1 passed, 0 failed")
        self.assertTrue(call.endswith(" " + expected), call)

    def test_targets_and_options(self):
        self.assert_ends_with([], "-- //tests/...")
        self.assert_ends_with(["//tests/nn/..."], "-- //tests/nn/...")
        self.assert_ends_with(["tests/nn:a", "--config=asan"], "--config=asan -- tests/nn:a")
        self.assert_ends_with(["-//tests/nn/..."], "-- //tests/... -//tests/nn/...")
        self.assert_ends_with(["--slow"], "--test_tag_filters=-gpu --test_timeout=3600 -- //tests/...")
        self.assert_ends_with(["--gpu"], "--test_tag_filters=gpu -- //tests/gpu:some_test")
        self.assert_ends_with(["//tests:a", "--", "-c", "opt"], "-c opt -- //tests:a")
        self.assert_ends_with(["--", "-c", "opt"], "-c opt -- //tests/...")

    def test_word_that_is_no_target_is_refused(self):
        for arguments in (["-c", "opt"], ["opt"], ["//tests/nn:a", "-k"]):
            done, call = self.run_tests(*arguments)
            self.assertEqual((done.returncode, call), (2, None))
            self.assertIn("expected a target such as //tests/nn/..., got", done.stderr)
            self.assertIn("Bazel's own arguments go after --", done.stderr)

    def test_help_starts_nothing(self):
        for arguments in (["--help"], ["-h"], ["--slow", "--help"]):
            done, call = self.run_tests(*arguments)
            self.assertEqual((done.returncode, call), (0, None))
            for word in ("usage: ./narrowgauge test", "//tests/nn/...", "--slow", "--gpu", "--config=asan|tsan", "-c dbg"):
                self.assertIn(word, done.stdout)
            self.assertNotIn("#", done.stdout)
        self.assertFalse(pathlib.Path(f"{self.calls_file}.setups").exists())

    def test_breach_of_the_include_rules_is_one_failed_case(self):
        self.write("nn/layer.h", '#include "trainer/main.h"\n')
        done, call = self.run_tests()
        self.assertEqual(done.returncode, 1)
        self.assertIsNotNone(call)
        self.assertIn("nn/layer.h: trainer/main.h: nn/ may include only", done.stderr)
        self.assertEqual(done.stdout.splitlines()[-1], "1 passed, 1 failed")

    def test_failure_of_bazel_is_the_exit_status(self):
        pathlib.Path(f"{self.calls_file}.fail").touch()
        done, _ = self.run_tests()
        self.assertEqual(done.returncode, 2)
        self.assertEqual(done.stdout.splitlines()[-1], "0 passed, 1 failed")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
