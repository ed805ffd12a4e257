"""Checks the two include rules of the tree and exits 1 with every breach listed.

Arrows: a folder includes only what stands before it (ALLOWED). Tiers: headers that cost seconds a unit to compile
are banned, or allowed only where LIMITED names the file. Run from the repository root; takes no arguments.
"""
import pathlib
import re
import sys

ALLOWED = {
    "nn": {"nn"},
    "comm": {"comm"},
    "fsdp": {"fsdp", "nn", "comm"},
    "float8": {"float8", "nn", "comm", "fsdp"},
    "qat": {"qat", "nn", "float8"},
    "quantization": {"quantization", "nn", "qat"},
    "sparsity": {"sparsity", "nn"},
    "optim": {"optim", "comm"},
    "data": {"data"},
    "checkpoint": {"checkpoint", "nn", "comm"},
    "export": {"export", "nn", "qat", "quantization", "sparsity", "checkpoint", "data"},
}
EVERYTHING = set(ALLOWED) | {"trainer"}
ALLOWED |= {
    "trainer": EVERYTHING,
    "tests": EVERYTHING | {"tests"},
    "benchmarks": EVERYTHING | {"benchmarks"},
    "examples": EVERYTHING,
}

BANNED = {
    "torch/torch.h": "15 s a unit; include the operators you call",
    "torch/extension.h": "Python's header; this is a C++ program",
    "ATen/ATen.h": "10 s a unit; include ATen/core/Tensor.h and ATen/ops/NAME.h",
    "ATen/Functions.h": "every operator at once; include ATen/ops/NAME.h",
}
# Ten seconds a unit: only where a module or an autograd function is defined.
LIMITED = {
    "torch/nn/module.h": re.compile(r"nn/layer\.h"),
    "torch/csrc/autograd/custom_function.h": re.compile(r"(nn|fsdp|float8|qat|sparsity)/[a-z0-9_]+\.cc"),
    "yaml-cpp/yaml.h": re.compile(r"trainer/[a-z_]*config[a-z_]*\.cc|tests/.*"),
    "mpi.h": re.compile(r"comm/mpi_[a-z_]+\.(h|cc)"),
}
INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^">]+)[">]', re.M)


def breaches(path):
    folder = path.parts[0]
    text = path.read_text()
    is_kernel = "kernels" in path.parts or path.suffix in (".cu", ".cuh")
    for name in INCLUDE.findall(text):
        first = name.split("/")[0]
        if name in BANNED:
            yield f"{name} is banned: {BANNED[name]}"
        if name in LIMITED and not LIMITED[name].fullmatch(str(path)):
            yield f"{name} belongs in {LIMITED[name].pattern} only"
        if first in EVERYTHING | {"tests", "benchmarks"} and "/" in name and (
                pathlib.Path(name).exists() or first not in ("torch",)):
            if first not in ALLOWED[folder]:
                yield f"{name}: {folder}/ may include only {', '.join(sorted(ALLOWED[folder]))}"
        if is_kernel and path.parts[0] != "tests" and first in ("ATen", "torch", "c10"):
            yield f"{name}: a kernel takes plain pointers and includes no torch header"
        if ".." in name:
            yield f"{name}: includes are rooted at the repository"


def main():
    failures = 0
    files = [p for folder in ALLOWED for suffix in ("h", "cc", "cu", "cuh")
             for p in sorted(pathlib.Path(folder).rglob("*." + suffix))]
    for path in files:
        for breach in breaches(path):
            print(f"{path}: {breach}", file=sys.stderr)
            failures += 1
    if not files:
        print("check_includes: found no source file; run it from the repository root", file=sys.stderr)
        failures += 1
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
