"""tools/setup.sh in a small tree, with stand-ins for apt-get, sudo, dpkg-query and Python: what it asks of them, that a
second run does nothing, and that nothing it leaves behind holds its lock.

Argument: setup.sh.
"""
import fcntl
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

SETUP = pathlib.Path(sys.argv[1]).resolve()
STAND_INS = {
    "id": 'echo "$USER_ID"',
    "dpkg-query": '[ -e "$NOTES/installed" ] && echo "ii "',
    # As sudo does by default: nothing of the caller's environment arrives but the path.
    "sudo": '[ "$1" = -n ] || exit 1; shift; echo "sudo $*" >>"$NOTES/calls"; exec env -i PATH="$PATH" NOTES="$NOTES" "$@"',
    "apt-get": """echo "apt-get $DEBIAN_FRONTEND $NEEDRESTART_MODE $*" >>"$NOTES/calls"
[ ! -t 0 ] && ! read -r || exit 1
case " $* " in
  *" install "*) [ ! -e "$NOTES/apt_fails" ] || { echo "E: Unable to locate package"; exit 100; }; touch "$NOTES/installed" ;;
esac""",
    "python3": """echo "python3 $*" >>"$NOTES/calls"
mkdir -p "$3/bin" "$3/lib/python3.11/site-packages"
printf '#!/usr/bin/env bash\\necho $$ >"$NOTES/pip.pid"\\n[ ! -e "$NOTES/pip_hangs" ] || sleep 60\\n' >"$3/bin/python"
chmod +x "$3/bin/python\"""",
}


class Setup(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())).resolve()
        self.root = self.folder / "the checkout"
        (self.root / "tools").mkdir(parents=True)
        (self.root / "third_party").mkdir()
        (self.root / "third_party/apt-packages.txt").write_text("# comment\nlibone-dev\nlibtwo-dev\n")
        (self.root / "third_party/requirements.lock").write_text("torch==0\n")
        (self.root / "third_party/requirements-cuda.lock").write_text("nvcc==0\n")
        (self.root / "third_party/requirements-consumers.lock").write_text("gguf==0\n")
        shutil.copy(SETUP, self.root / "tools/setup.sh")
        (self.folder / "bin").mkdir()
        for name, text in STAND_INS.items():
            (self.folder / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
            (self.folder / "bin" / name).chmod(0o755)
        self.cache = self.folder / "cache"
        self.environment = {"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "NOTES": str(self.folder),
                            "USER_ID": "0", "NARROWGAUGE_CACHE": str(self.cache)}

    def note(self, name):
        (self.folder / name).touch()

    def calls(self):
        return (self.folder / "calls").read_text().splitlines() if (self.folder / "calls").exists() else []

    def run_setup(self, **variables):
        return subprocess.run([self.root / "tools/setup.sh"], env=self.environment | variables, cwd=self.folder,
                              input="an answer\n", capture_output=True, text=True, timeout=20)

    def assert_lock_is_free(self):
        with open(self.cache / "setup.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # throws when it is held

    def test_sets_up_once(self):
        done = self.run_setup()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn("failed", done.stderr)
        update, install, venv = self.calls()
        self.assertRegex(update, "^apt-get noninteractive a .*update$")
        self.assertRegex(install, "^apt-get noninteractive a .*install -y --no-install-recommends libone-dev libtwo-dev$")
        self.assertIn("-m venv", venv)
        site = (self.root / "third_party/site").resolve()
        self.assertTrue(site.is_dir())
        self.assertEqual(site.parents[3], self.cache)
        cuda = (self.root / "third_party/cuda").readlink()
        self.assertEqual((cuda.parents[2], cuda.parts[-2:]), (self.cache, ("nvidia", "cu13")))
        self.assertTrue(cuda.parents[1].is_dir())
        consumers = (self.root / "third_party/consumers").readlink()
        self.assertEqual(consumers.parent, self.cache)
        self.assertTrue(consumers.is_dir())
        again = self.run_setup()
        self.assertEqual((again.returncode, again.stderr), (0, ""))
        self.assertEqual(len(self.calls()), 3)

    def test_sudo_gets_the_variables_too(self):
        done = self.run_setup(USER_ID="1000")
        self.assertEqual(done.returncode, 0, done.stderr)
        calls = [call for call in self.calls() if call.startswith("apt-get")]
        self.assertEqual(len(calls), 2)
        for call in calls:
            self.assertTrue(call.startswith("apt-get noninteractive a "), call)

    def test_without_root_it_says_what_to_ask_for(self):
        (self.folder / "bin/sudo").write_text("#!/bin/sh\nexit 1\n")
        done = self.run_setup(USER_ID="1000")
        self.assertEqual(done.returncode, 1)
        self.assertIn("apt-get install --no-install-recommends libone-dev libtwo-dev", done.stderr)
        self.note("installed")
        self.assertEqual(self.run_setup(USER_ID="1000").returncode, 0)

    def test_failure_of_apt_is_shown(self):
        self.note("apt_fails")
        done = self.run_setup()
        self.assertEqual(done.returncode, 1)
        self.assertIn("E: Unable to locate package", done.stderr)
        self.assertIn("apt.log", done.stderr)

    def test_killed_set_up_leaves_no_lock_and_is_repeated(self):
        self.note("installed")
        self.note("pip_hangs")
        with subprocess.Popen([self.root / "tools/setup.sh"], env=self.environment, stderr=subprocess.DEVNULL) as setup:
            pip = self.folder / "pip.pid"
            for _ in range(400):
                if pip.exists() and pip.read_text().strip():
                    break
                time.sleep(0.05)
            setup.send_signal(signal.SIGKILL)
        try:
            self.assert_lock_is_free()  # though the display of progress and pip still live
            os.kill(int(pip.read_text()), 0)
        finally:
            for child in pathlib.Path(f"/proc/{pip.read_text().strip()}/task").glob("*/children"):
                for pid in child.read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
            try:
                os.kill(int(pip.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended with its child
        self.assertFalse((self.root / "third_party/site").exists())
        (self.folder / "pip_hangs").unlink()
        self.assertEqual(self.run_setup().returncode, 0)
        self.assertEqual([path.name[:7] for path in self.cache.glob("python-*")], ["python-"])

    def test_waits_for_another_set_up_and_says_so(self):
        self.note("installed")
        self.cache.mkdir()
        with open(self.cache / "setup.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with subprocess.Popen([self.root / "tools/setup.sh"], env=self.environment, text=True,
                                  stderr=subprocess.PIPE) as waiting:
                self.assertIn("another set-up is running; waiting", waiting.stderr.readline())
                fcntl.flock(lock, fcntl.LOCK_UN)
                waiting.communicate(timeout=20)
                self.assertEqual(waiting.returncode, 0)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
