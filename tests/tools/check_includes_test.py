"""tools/check_includes.py over small trees: each breach is found and named, what is allowed passes.

Argument: check_includes.py.
"""
import pathlib
import subprocess
import sys
import tempfile
import unittest

CHECK = pathlib.Path(sys.argv[1]).resolve()


class CheckIncludes(unittest.TestCase):
    def check(self, files, ignored=""):
        """Runs the check over {path: text}; returns (exit status, lines of stderr)."""
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            subprocess.run(["git", "init", "-q", folder], check=True)
            (root / ".gitignore").write_text(ignored)
            for name, text in files.items():
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            done = subprocess.run([sys.executable, CHECK], cwd=folder, capture_output=True, text=True)
            return done.returncode, done.stderr.splitlines()

    def assert_clean(self, path, *includes):
        self.assertEqual(self.check({path: "".join(f"#include {name}\n" for name in includes)}), (0, []))

    def assert_breach(self, path, include, expected):
        status, lines = self.check({path: f"#include <vector>\n  # include {include}\n"})
        self.assertEqual(status, 1)
        self.assertEqual(len(lines), 1, lines)
        self.assertTrue(lines[0].startswith(f"{path}: "), lines)
        self.assertIn(expected, lines[0])

    def test_allowed_includes_pass(self):
        self.assert_clean("nn/layer.h", "<torch/nn/module.h>", "<ATen/core/Tensor.h>", '"nn/linear.h"')
        self.assert_clean("nn/swiglu.cc", "<torch/csrc/autograd/custom_function.h>", '"nn/kernels/swiglu.h"')
        self.assert_clean("fsdp/state.cc", "<torch/csrc/autograd/engine.h>", "<torch/csrc/autograd/graph_task.h>",
                          '"comm/communicator.h"', '"nn/layer.h"')
        self.assert_clean("comm/mpi_session.cc", "<mpi.h>")
        self.assert_clean("trainer/config_yaml.cc", "<yaml-cpp/parser.h>", '"export/writer.h"')
        self.assert_clean("tests/nn/layer_test.cc", "<gtest/gtest.h>", '"tests/support/numerics.h"', '"trainer/a.h"')
        self.assert_clean("nn/kernels/a.cc", "<cmath>", '"nn/kernels/a.h"', '"vectorize/target_clones.h"')
        self.assert_clean("optim/kernels/a.cc", '"vectorize/target_clones.h"')
        self.assert_clean("nn/kernels/a.cu", '"cuda/launch.cuh"', '"nn/kernels/a_cuda.h"')
        self.assert_clean("cuda/launch_scope.h", "<ATen/core/Tensor.h>", '"cuda/stream_handle.h"')

    def test_arrows(self):
        self.assert_breach("nn/a.h", '"fsdp/b.h"', "fsdp/b.h: nn/ may include only cuda, nn, vectorize")
        self.assert_breach("data/a.cc", '"trainer/b.h"', "data/ may include only data")
        self.assert_breach("data/a.cc", '"vectorize/target_clones.h"', "data/ may include only data")
        self.assert_breach("trainer/a.cc", '"tests/support/b.h"', "trainer/ may include only")
        self.assert_breach("float8/a.cc", '"qat/b.h"', "float8/ may include only")
        self.assert_breach("vectorize/a.h", '"nn/kernels/b.h"', "vectorize/ may include only vectorize")

    def test_form_of_the_name(self):
        self.assert_breach("nn/a.cc", '"layer.h"', "quotes are for headers of ours")
        self.assert_breach("nn/a.cc", '"gtest/gtest.h"', "quotes are for headers of ours")
        self.assert_breach("nn/a.cc", '"nn/../comm/b.h"', "rooted at the repository")
        self.assert_breach("nn/a.cc", '"./nn/b.h"', "rooted at the repository")
        self.assert_breach("nn/a.cc", "<nn/b.h>", 'goes in "quotes"')

    def test_costly_headers(self):
        self.assert_breach("nn/a.cc", "<ATen/ATen.h>", "banned")
        self.assert_breach("nn/a.cc", "<ATen/Functions.h>", "banned")
        for name in ("torch.h", "extension.h", "types.h", "library.h", "nn/functional.h", "csrc/api/include/torch/all.h"):
            self.assert_breach("tests/nn/a_test.cc", f"<torch/{name}>", f"torch/{name}: no file includes this")
        self.assert_breach("nn/linear.h", "<torch/nn/module.h>", "belongs in nn/layer")
        self.assert_breach("nn/a.h", "<torch/csrc/autograd/custom_function.h>", "belongs in")
        self.assert_breach("nn/a.cc", "<torch/csrc/autograd/engine.h>", "belongs in fsdp/")
        self.assert_breach("trainer/a.cc", "<yaml-cpp/parser.h>", "belongs in trainer/")
        self.assert_breach("fsdp/a.cc", "<mpi.h>", "belongs in comm/mpi_")

    def test_kernels(self):
        for include in ("<ATen/core/Tensor.h>", "<c10/util/BFloat16.h>", "<torch/nn/module.h>"):
            self.assert_breach("nn/kernels/a.cc", include, "no torch header")
            self.assert_breach("vectorize/a.h", include, "no torch header")
            self.assert_breach("float8/a.cu", include, "no torch header")
            self.assert_breach("cuda/launch.cuh", include, "no torch header")
        self.assert_breach("nn/kernels/a.cc", '"nn/layer.h"', "a kernel includes only kernels, vectorize/")
        self.assert_breach("float8/kernels/a.cu", '"nn/linear.h"', "a kernel includes only kernels, vectorize/")
        self.assert_breach("nn/kernels/a.cu", '"cuda/launch_scope.h"', "a kernel includes only kernels, vectorize/")
        self.assert_breach("nn/kernels/a.cc", '"optim/kernels/b.h"', "nn/ may include only")

    def test_every_suffix_is_looked_at(self):
        for suffix in ("h", "hh", "hpp", "cc", "cpp", "cu", "cuh"):
            self.assert_breach(f"nn/a.{suffix}", '"trainer/b.h"', "nn/ may include only")

    def test_sources_outside_of_the_folders(self):
        for path in ("main.cc", "tools/a.cc", "helpers/nn/a.h"):
            status, lines = self.check({path: "", "nn/a.h": ""})
            self.assertEqual((status, len(lines)), (1, 1))
            self.assertTrue(lines[0].startswith(f"{path}: a source outside of the known folders"), lines)

    def test_ignored_files_are_not_ours(self):
        self.assertEqual(self.check({"build/a.cc": "", "nn/a.h": ""}, ignored="/build/\n"), (0, []))

    def test_all_breaches_are_listed(self):
        status, lines = self.check({"nn/a.h": '#include "data/b.h"\n#include "b.h"\n', "comm/a.h": '#include "nn/b.h"\n'})
        self.assertEqual((status, len(lines)), (1, 3))

    def test_bytes_that_are_no_utf8_do_not_matter(self):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["git", "init", "-q", folder], check=True)
            (pathlib.Path(folder) / "nn").mkdir()
            (pathlib.Path(folder) / "nn/a.h").write_bytes(b'// \xff\n#include "data/b.h"\n')
            done = subprocess.run([sys.executable, CHECK], cwd=folder, capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("nn/ may include only", done.stderr)

    def test_nothing_to_check_is_an_error(self):
        self.assertEqual(self.check({"README.md": ""})[0], 1)
        with tempfile.TemporaryDirectory() as folder:  # no git checkout
            done = subprocess.run([sys.executable, CHECK], cwd=folder, capture_output=True, text=True)
            self.assertEqual(done.returncode, 1)
            self.assertIn("check_includes: cannot list the sources", done.stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
