"""Everything that needs a GPU, of a bundle, in one command: tests, a memory check, benchmarks.

Usage, here:   tools/bundle.sh FOLDER bazel-bin/tests/gpu/*_gpu_test bazel-bin/benchmarks/gpu/kernels_gpu_benchmark
       there:  python3 tests/gpu/run_all.py FOLDER [--only NAME ...] [--minutes 8] [--logs DIRECTORY]
Runs every FOLDER/*_gpu_test, train_on_gpu_test.py, compute-sanitizer on the kernels' smaller cases (where it is installed)
and both benchmarks, each within the time that is left. All output goes to DIRECTORY/run_all.log (default $OUT, else a
temporary one); the table printed last has a line or more for each part. Exits 1 if a part failed. Parts that the time did not reach count as failed.
"""
import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A sanitizer slows kernels a hundredfold: shapes that reach every path, but few.
SANITIZED_CASES = ("LongRows/*:*OnGpu.*/7:*OnGpu.*/1?:*OnGpu.*/3?:*OnGpu.Edges*:*OnGpu.Unaligned*:*OnGpu.Extremes*:"
                   "AdamWOnGpu.*")


def parts(bundle, python):
    """(name, command, what of its output the table shows) in order of importance."""
    yield "machine", ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"], 1
    tests = sorted(bundle.glob("*_gpu_test"))
    for test in tests:
        yield test.name, [test, "--gtest_brief=1"], 1
    yield "train_on_gpu_test", [python, ROOT / "tests/gpu/train_on_gpu_test.py", bundle / "narrowgauge"], 1
    if (bundle / "kernels_gpu_benchmark").exists():
        yield "kernels_gpu_benchmark", [bundle / "kernels_gpu_benchmark"], 100
    train = [python, ROOT / "benchmarks/gpu/train_step.py", "--narrowgauge", bundle / "narrowgauge"]
    yield "train_step bf16", [*train, "--peers", "eager", "compile"], 100
    if shutil.which("compute-sanitizer"):
        for test in tests:
            yield f"memcheck {test.name}", ["compute-sanitizer", "--error-exitcode=1", "--target-processes=all", test,
                                            "--gtest_brief=1", f"--gtest_filter={SANITIZED_CASES}"], 1
    yield "train_step float8", [*train, "--models", "llama_1b", "--ours", "float8_tensorwise", "bf16", "--peers",
                                "float8_tensorwise", "--steps", "10"], 100


def run(command, seconds):
    """(exit status, output); a status of None: out of time."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        try:
            status = subprocess.run(list(map(str, command)), stdout=file, stderr=subprocess.STDOUT, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            status = None
        except OSError as error:
            file.write(str(error))
            status = 1
        file.seek(0)
        return status, file.read()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=pathlib.Path)
    parser.add_argument("--only", nargs="+", help="parts whose name contains one of these words")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--logs", type=pathlib.Path, default=os.environ.get("OUT"))
    args = parser.parse_args()
    logs = pathlib.Path(args.logs or tempfile.mkdtemp())
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / "run_all.log"
    end = time.monotonic() + 60 * args.minutes
    rows = []
    for name, command, num_lines in parts(args.bundle.resolve(), sys.executable):
        if args.only and not any(word in name for word in args.only):
            continue
        started = time.monotonic()
        left = end - started
        status, output = run(command, left) if left > 5 else (None, "")
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"==== {name}: {' '.join(map(str, command))}\n{output}\n")
        verdict = {0: "ok", None: "out of time"}.get(status, f"FAILED ({status})")
        lines = output.strip().splitlines()
        failures = [line for line in lines if line.startswith(("[  FAILED  ]", "FAIL:", "ERROR:", "========= "))]
        shown = failures[:20] if status != 0 and failures else lines[-num_lines:]
        rows.append((name, verdict, time.monotonic() - started, shown))
        print(f"{verdict:12} {name}", file=sys.stderr, flush=True)
        if status not in (0, None):
            print(output if len(output) < 4000 else output[:2000] + "\n...\n" + output[-2000:], file=sys.stderr)
    print(f"\nlog: {log}")
    for name, verdict, seconds, lines in rows:
        print(f"== {name}: {verdict}, {seconds:.0f} s")
        print("\n".join(lines))
    sys.exit(any(verdict != "ok" for _, verdict, _, _ in rows))


if __name__ == "__main__":
    main()
