#!/usr/bin/env bash
# Checks format and lint of the C++ sources: tools/lint.sh [--changed[=COMMIT]] [--format] [FILE ...]
#   --changed  only files that differ from COMMIT (default: HEAD), untracked ones included
#   --format   clang-format alone (seconds; clang-tidy takes 5 to 30 s a file that includes libtorch)
# Without FILE or --changed: every source. Exits 0 when all is well. Needs clang-format and clang-tidy, version 14
# (another version lays out the same code differently); 'clang-format -i FILE' repairs the format.
set -euo pipefail
start=$PWD
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

version=14
suffixes=('*.h' '*.hh' '*.hpp' '*.cc' '*.cpp' '*.cu' '*.cuh')
changed="" format_only="" files=()
for argument in "$@"; do
  case $argument in
    --help) sed -n '2,6s/^# //p' tools/lint.sh; exit 0 ;;
    --changed) changed=HEAD ;;
    --changed=*) changed=${argument#*=} ;;
    --format) format_only=1 ;;
    -*) echo "lint: unknown option '$argument'; see tools/lint.sh --help" >&2; exit 2 ;;
    *) files+=("$(realpath --relative-to=. "$(cd "$start" && realpath "$argument")")") ;;
  esac
done

# The program of the right version, or an error that says how to get it.
find_tool() {
  local name
  for name in "$1-$version" "$1"; do
    if command -v "$name" >/dev/null && "$name" --version | grep -q "version $version\."; then
      echo "$name"
      return
    fi
  done
  echo "lint: $1 $version is not installed; apt-get install $1-$version" >&2
  return 1
}
clang_format=$(find_tool clang-format)
[ -n "$format_only" ] || clang_tidy=$(find_tool clang-tidy)

if [ ${#files[@]} -eq 0 ]; then
  if [ -n "$changed" ]; then
    git rev-parse --quiet --verify "$changed^{commit}" >/dev/null || { echo "lint: no commit '$changed'" >&2; exit 2; }
    list() { git diff -z --name-only --diff-filter=d "$changed" -- "$@"; git ls-files -z -o --exclude-standard -- "$@"; }
  else
    list() { git ls-files -z -co --exclude-standard -- "$@"; }
  fi
  while IFS= read -r -d '' file; do
    [ ! -f "$file" ] || files+=("$file")
  done < <(list "${suffixes[@]}" | sort -zu)
fi
[ ${#files[@]} -gt 0 ] || { echo "lint: no source has changed" >&2; exit 0; }

status=0
echo "[lint] clang-format of ${#files[@]} files" >&2
"$clang_format" --dry-run -Werror "${files[@]}" || status=1
[ -z "$format_only" ] || exit "$status"

[ -e third_party/site ] || { echo "lint: no libtorch headers yet; run tools/setup.sh" >&2; exit 1; }
torch=third_party/site/torch/include
flags=(-x c++ -std=c++20 -fopenmp -Wall -Wextra -I. -isystem "$torch" -isystem "$torch/torch/csrc/api/include"
  -isystem /usr/lib/x86_64-linux-gnu/openmpi/include -DOMPI_SKIP_MPICXX=1
  -isystem third_party/site/nvidia/cu13/include -isystem third_party/cuda/include)
printf '%s\0' "${files[@]}" | { grep -zvE '\.cuh?$' || :; } |
  xargs -0 -r -I{} -P "$(nproc)" \
    bash -c 'echo "[lint] clang-tidy $1" >&2; exec "$0" --quiet "$@"' "$clang_tidy" {} -- "${flags[@]}" \
    2> >(grep -vE '^[0-9]+ warnings? generated' >&2) || status=1
exit "$status"
