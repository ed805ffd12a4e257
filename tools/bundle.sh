#!/usr/bin/env bash
# Makes a folder that runs on another machine: tools/bundle.sh OUTPUT [PROGRAM ...]
# It holds the program, the configurations and every library it needs but libc and libtorch's own; those are taken from the
# torch wheel of the other machine, which must have the same version (third_party/requirements.txt):
#   OUTPUT/narrowgauge train OUTPUT/configs/bench/llama_12m.yaml
# looks for torch through NARROWGAUGE_TORCH (the folder .../site-packages/torch) or the machine's python3.
# The program is built first, unless NARROWGAUGE_BINARIES names the folder of another build.
# Further PROGRAMs (tests, benchmarks; built already) start in the same way: OUTPUT/NAME.
# A machine without an MPI of its own starts ranks with the one that OUTPUT carries, Debian's Open MPI less its fabrics:
#   OUTPUT/mpirun -np 2 OUTPUT/narrowgauge train ...
set -euo pipefail
root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
[ $# -ge 1 ] && [[ $1 != -* ]] || { sed -n '2,10s/^# //p' "$root/tools/bundle.sh"; [ "${1:-}" = --help ] && exit 0 || exit 2; }
output=$1
shift
fail() {
  echo "bundle: $1" >&2
  exit 1
}
[ ! -e "$output" ] || fail "$output exists; remove it or choose another folder"
[ -n "${NARROWGAUGE_BINARIES:-}" ] || "$root/narrowgauge" --version >/dev/null
binaries=${NARROWGAUGE_BINARIES:-$root/bazel-bin/trainer}
torch_version=$(sed -n 's/^torch==//p' "$root/third_party/requirements.txt")
programs=("$binaries"/narrowgauge{,_torch} "$@")
for program in "${programs[@]}"; do
  [ -x "$program" ] || fail "no program $program; build it, or leave NARROWGAUGE_BINARIES unset"
done
needed=$(ldd "${programs[@]}")
! grep 'not found' <<<"$needed" >&2 || fail "these libraries are missing on this machine, too; run tools/setup.sh"

# Put together beside its final name, so that an interrupted run leaves nothing that looks whole.
building=$output.building.$$
trap 'rm -rf "$building"' EXIT
components=lib/x86_64-linux-gnu/openmpi/lib/openmpi3  # below Open MPI's prefix, which is /usr or $OPAL_PREFIX
mkdir -p "$building"/{bin,lib,lib-mpi} "$building/mpi/"{bin,share,$components}
cp -L "${programs[@]}" "$building/bin/"
chmod u+w "$building"/bin/*
cp -rL "$root/configs" "$building/"
cp "$root/tools/qat_convergence.py" "$building/"

# What ranks of one host, or of several over TCP, open while they run; ldd does not see it.
cp -L "$(type -P mpirun)" "$building/mpi/bin/mpirun"
cp -L "$(type -P orted)" "$building/mpi/bin/orted"
cp -rL /usr/share/openmpi "$building/mpi/share/"
for family in allocator bml btl_self btl_sm btl_tcp btl_vader coll errmgr ess filem grpcomm iof mpool odls oob op plm pmix pml_ob1 \
  pstat rcache reachable_weighted regx rmaps rml routed rtc schizo shmem state; do
  cp -L "/usr/$components/mca_$family"*.so "$building/mpi/$components/"
done
rm -f "$building/mpi/$components"/*{slurm,simulator,monitoring,cuda,coll_sm}*.so
needed+=$'\n'$(ldd "$building"/mpi/bin/* "$building/mpi/$components"/*.so)

awk '$2 == "=>" && $3 ~ /^\// {print $3}' <<<"$needed" | sort -u | while read -r library; do
  case $(basename "$library") in
    libtorch* | libc10* | libcud* | libcupti* | libgomp*) ;;  # beside libtorch
    libc.so* | libm.so* | libpthread* | libdl* | librt* | libutil* | libstdc++* | libgcc_s* | libz.so*) ;;  # the machine's
    libmpi* | libopen-* | libmca_* | libpmix* | libmunge* | libhwloc* | libevent* | libudev*) cp -L "$library" "$building/lib-mpi/" ;;
    *) cp -L "$library" "$building/lib/" ;;
  esac
done

{
  printf '#!/usr/bin/env bash\nset -euo pipefail\ntorch_version=%s\n' "$torch_version"
  cat <<'LAUNCHER'
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
find_torch='import importlib.util, sys
sys.path = [folder for folder in sys.path if folder]  # not the current folder
found = importlib.util.find_spec("torch")
print(found.submodule_search_locations[0] if found else "")'
torch=${NARROWGAUGE_TORCH:-$(python3 -c "$find_torch" 2>/dev/null || :)}
if [ ! -e "$torch/lib/libtorch_cpu.so" ]; then
  echo "narrowgauge: found no libtorch in '$torch'; pip install torch==$torch_version, or set NARROWGAUGE_TORCH to .../site-packages/torch" >&2
  exit 1
fi
found_version=$(sed -nE "s/^__version__ = '([^'+]*).*/\1/p" "$torch/version.py")
if [ "$found_version" != "$torch_version" ]; then
  echo "narrowgauge: expected torch $torch_version, got $found_version in $torch; pip install torch==$torch_version" >&2
  exit 1
fi
libraries=$here/lib
# The machine's own MPI knows its launcher; the bundled one serves a process on its own and what OUTPUT/mpirun starts.
case ${OPAL_PREFIX:-}$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p) in
  "$here/mpi"*) libraries=$here/lib-mpi:$libraries ;;
  *'libmpi.so.40 '*) ;;
  *) libraries+=:$here/lib-mpi ;;
esac
libraries+=:$torch/lib
for folder in "$torch"/../nvidia/*/lib; do
  [ ! -d "$folder" ] || libraries+=:$folder
done
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export NARROWGAUGE_ROOT=$here
exec "$here/bin/$(basename "$0")" "$@"
LAUNCHER
} >"$building/narrowgauge"
cat >"$building/mpirun" <<'LAUNCHER'
#!/usr/bin/env bash
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
export OPAL_PREFIX=$here/mpi PMIX_MCA_pcompress_base_silence_warning=1
export LD_LIBRARY_PATH=$here/lib-mpi${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
exec "$here/mpi/bin/mpirun" "$@"
LAUNCHER
chmod +x "$building"/{narrowgauge,mpirun}
for program in "$@"; do
  ln -s narrowgauge "$building/$(basename "$program")"
done
mv -T "$building" "$output"
du -sh "$output" >&2
