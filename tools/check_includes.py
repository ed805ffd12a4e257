"""Checks the include rules of the tree and exits 1 with every breach listed.

Arrows: a folder includes only what stands before it (ALLOWED). Kernels take plain pointers: of ours they include only
other kernels, vectorize/ and cuda/, of libtorch nothing. Tiers: headers that cost seconds a unit to compile are banned, or
allowed only where LIMITED names the file. Looks at every source that git tracks or does not ignore. Run from the
repository root; takes no arguments.
"""
import pathlib
import re
import subprocess
import sys

ALLOWED = {
    "vectorize": {"vectorize"},
    "memory": {"memory"},
    "cuda": {"cuda"},
    "nn": {"nn", "vectorize", "cuda"},
    "comm": {"comm"},
    "fsdp": {"fsdp", "nn", "comm"},
    "float8": {"float8", "nn", "comm", "fsdp", "vectorize", "cuda"},
    "checkpoint": {"checkpoint", "nn", "comm"},
    "quantization": {"quantization", "nn", "float8", "checkpoint", "vectorize", "cuda"},
    "qat": {"qat", "quantization", "nn", "comm", "fsdp", "checkpoint", "vectorize", "cuda"},
    "lora": {"lora", "qat", "quantization", "nn", "checkpoint"},
    "sparsity": {"sparsity", "nn", "vectorize", "cuda"},
    "optim": {"optim", "comm", "vectorize", "cuda"},
    "jinja": {"jinja"},
    "data": {"data", "jinja"},
    "plan": {"plan", "nn"},
    "report": {"report"},
    "bench": {"bench"},
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
    "ATen/ATen.h": "10 s a unit; include ATen/core/Tensor.h and ATen/ops/NAME.h",
    "ATen/Functions.h": "every operator at once; include ATen/ops/NAME.h",
    "ATen/NativeFunctions.h": "every operator at once; include ATen/ops/NAME.h",
    "ATen/Operators.h": "every operator at once; include ATen/ops/NAME.h",
}
# Header -> the files that may include it. Any other torch/ header costs ten seconds a unit or more (torch/torch.h 15 s).
LIMITED = [
    (r"torch/nn/module\.h", r"nn/layer\.h"),
    (r"torch/csrc/autograd/custom_function\.h", r"(tests/)?(nn|fsdp|float8|qat|sparsity)/[a-z0-9_]+\.cc"),
    (r"torch/csrc/autograd/engine\.h", r"fsdp/[a-z0-9_]+\.cc|nn/activation_checkpoint\.cc"),
    (r"torch/csrc/autograd/graph_task\.h", r"(fsdp|float8)/[a-z0-9_]+\.cc|nn/activation_checkpoint\.cc"),
    (r"torch/csrc/autograd/profiler_kineto\.h", r"trainer/step_profiler\.cc"),
    (r"torch/.*", None),
    (r"yaml-cpp/.*", r"trainer/[a-z_]*config[a-z_]*\.cc|tests/.*"),
    (r"mpi\.h", r"comm/mpi_[a-z_]+\.(h|cc)"),
    (r"nccl\.h", r"comm/nccl_[a-z_]+\.(h|cc)"),
]
# In cuda/, where what kernels share lies, these look at tensors.
TENSOR_SIDE = ("cuda/launch_scope.h", "cuda/libtorch_cuda.h", "cuda/libtorch_cuda.cc")
SUFFIXES = ("h", "hh", "hpp", "cc", "cpp", "cu", "cuh")
INCLUDE = re.compile(r'^\s*#\s*include\s+([<"])([^">]+)[">]', re.M)


def is_kernel(path):
    if str(path) in TENSOR_SIDE:
        return False
    return path.parts[0] not in ("tests", "benchmarks") and (
        "kernels" in path.parts or path.parts[0] in ("vectorize", "cuda") or path.suffix in (".cu", ".cuh"))


def tier_breach(path, name):
    """Why this file may not include this library header, or None."""
    if name in BANNED:
        return f"{name} is banned: {BANNED[name]}"
    for header, files in LIMITED:
        if re.fullmatch(header, name):
            if files is None:
                return f"{name}: no file includes this torch/ header; include ATen/ops/NAME.h or extend LIMITED"
            if not re.fullmatch(files, str(path)):
                return f"{name} belongs in {files} only"
            return None
    return None


def breaches(path):
    folder = path.parts[0]
    if len(path.parts) < 2 or folder not in ALLOWED:
        yield f"a source outside of the known folders ({', '.join(sorted(ALLOWED))})"
        return
    for mark, name in INCLUDE.findall(path.read_text(encoding="utf-8", errors="replace")):
        parts = name.split("/")
        ours = len(parts) > 1 and parts[0] in ALLOWED
        if ".." in parts or "." in parts:
            yield f"{name}: includes are rooted at the repository"
        elif ours and mark == "<":
            yield f'{name}: a header of ours goes in "quotes"'
        elif not ours and mark == '"':
            yield f"{name}: quotes are for headers of ours, by their path from the repository root"
        if ours and parts[0] not in ALLOWED[folder]:
            yield f"{name}: {folder}/ may include only {', '.join(sorted(ALLOWED[folder]))}"
        elif ours and is_kernel(path) and not is_kernel(pathlib.PurePosixPath(name)):
            yield f"{name}: a kernel includes only kernels, vectorize/ and cuda/ of ours"
        if is_kernel(path) and parts[0] in ("ATen", "torch", "c10"):
            yield f"{name}: a kernel takes plain pointers and includes no torch header"
        elif breach := tier_breach(path, name):
            yield breach


def sources():
    """Every source that git tracks or would, but for those deleted and not yet committed."""
    # A checkout owned by another user (a container's mount) is only read here.
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--",
         *(f"*.{suffix}" for suffix in SUFFIXES)], stdout=subprocess.PIPE, check=True).stdout
    paths = {pathlib.Path(name.decode(errors="surrogateescape")) for name in listing.split(b"\0") if name}
    return sorted(path for path in paths if path.is_file())


def main():
    try:
        files = sources()
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"check_includes: cannot list the sources: {error}; run it in a git checkout")
    if not files:
        sys.exit("check_includes: found no source file; run it from the repository root")
    found = [f"{path}: {breach}" for path in files for breach in breaches(path)]
    for line in found:
        print(line, file=sys.stderr)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
