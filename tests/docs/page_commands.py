"""The commands of a Markdown page, run as they stand in a folder laid out like the repository.

A page's commands are its ```sh blocks; the README of an example indents them instead. Lines that end in a backslash go on.
"""
import os
import pathlib
import subprocess

STARTS = ("./narrowgauge ", "mpirun ", "tools/python.sh ", "head ")


def commands(page):
    """[command] in the order of the page. Every line of a ```sh block is one; indented lines are, where they start as one."""
    found, in_block, pending = [], False, ""
    for line in pathlib.Path(page).read_text().splitlines():
        if line.startswith("```"):
            in_block = line == "```sh"
            continue
        indented = line.startswith("    ") and (pending or line.strip().startswith(STARTS))
        if not (in_block or indented) or not line.strip():
            continue
        pending += line.strip().removesuffix("\\")
        if not line.endswith("\\"):
            found.append(pending)
            pending = ""
    return found


class Workplace:
    """A folder with what commands name: ./narrowgauge, tools/python.sh, examples/, configs/ and third_party/site."""

    def __init__(self, folder, program):
        self.folder = pathlib.Path(folder)
        python = pathlib.Path(os.environ["NARROWGAUGE_PYTHON"]).resolve()
        self._script("narrowgauge", os.path.abspath(program))
        self._script("tools/python.sh", str(python))
        for name in ("examples", "configs"):
            (self.folder / name).symlink_to(pathlib.Path(name).resolve())
        (self.folder / "third_party").mkdir()
        site = subprocess.run([python, "-c", "import torch, os; print(os.path.dirname(os.path.dirname(torch.__file__)))"],
                              check=True, capture_output=True, text=True).stdout.strip()
        (self.folder / "third_party/site").symlink_to(site)

    def _script(self, name, target):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\nexec "{target}" "$@"\n')
        path.chmod(0o755)

    def run(self, command):
        """Exit code, standard output and standard error of a line of shell."""
        environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                           OMPI_MCA_btl_vader_single_copy_mechanism="none", OMPI_MCA_rmaps_base_oversubscribe="1",
                           OMPI_MCA_hwloc_base_binding_policy="none", XDG_CACHE_HOME=str(self.folder / "cache"))
        ended = subprocess.run(["bash", "-c", command], cwd=self.folder, env=environment, capture_output=True, text=True,
                               timeout=280)
        return ended.returncode, ended.stdout, ended.stderr
