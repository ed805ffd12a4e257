#!/usr/bin/env bash
# Makes a folder that runs on another machine: tools/bundle.sh OUTPUT
# It holds the program, the configurations and every library it needs but libc and libtorch's own; those are taken from the
# torch wheel of the other machine, which must have the same version (third_party/requirements.txt):
#   OUTPUT/narrowgauge train OUTPUT/configs/bench/llama_12m.yaml
# looks for torch through NARROWGAUGE_TORCH (the folder .../site-packages/torch) or the machine's python3.
set -euo pipefail
[ $# -eq 1 ] && [ "$1" != --help ] || { sed -n '2,7p' "${BASH_SOURCE[0]}"; exit 2; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
output=$1
[ ! -e "$output" ] || { echo "bundle: $output exists; remove it or choose another folder" >&2; exit 1; }
mkdir -p "$output/bin" "$output/lib"
binaries=${NARROWGAUGE_BINARIES:-$root/bazel-bin/trainer}
cp -L "$binaries"/narrowgauge{,_torch} "$output/bin/"
chmod u+w "$output"/bin/*
cp -r "$root/configs" "$output/"

mkdir -p "$output/lib-mpi"
ldd "$binaries"/narrowgauge{,_torch} | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u | while read -r library; do
  case $(basename "$library") in
    libtorch* | libc10* | libcud* | libcupti* | libgomp*) ;;  # beside libtorch
    libc.so* | libm.so* | libpthread* | libdl* | librt* | libutil* | libstdc++* | libgcc_s* | libz.so*) ;;  # the machine's
    libmpi* | libopen-* | libhwloc* | libevent* | libudev*) cp -L "$library" "$output/lib-mpi/" ;;
    *) cp -L "$library" "$output/lib/" ;;
  esac
done

cat >"$output/narrowgauge" <<'LAUNCHER'
#!/usr/bin/env bash
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
torch=${NARROWGAUGE_TORCH:-$(python3 -c 'import importlib.util; print(importlib.util.find_spec("torch").submodule_search_locations[0])')}
nvidia=$(printf '%s:' "$torch"/../nvidia/*/lib)
# The machine's own MPI knows its launcher; the bundled one serves runs of a single process.
mpi=$here/lib-mpi:
ldconfig -p | grep -q 'libmpi.so.40 ' && mpi=
export LD_LIBRARY_PATH=$here/lib:$mpi$torch/lib:$nvidia${LD_LIBRARY_PATH:-}
export NARROWGAUGE_ROOT=$here
exec "$here/bin/narrowgauge" "$@"
LAUNCHER
chmod +x "$output/narrowgauge"
du -sh "$output" >&2
