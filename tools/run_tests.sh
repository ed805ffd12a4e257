#!/usr/bin/env bash
# Builds and runs the tests; the last line printed is 'N passed, N failed', counting test cases.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
cache=${NARROWGAUGE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/narrowgauge}

show_help() {
  cat <<'HELP'
usage: ./narrowgauge test [OPTION ...] [TARGET ...] [-- BAZEL ARGUMENT ...]

Sets up and builds what is missing, runs the tests, and prints 'N passed, N failed' as its last line.
Exits 0 only when every case of every test passed; a skipped or disabled case counts as failed.

TARGET is a Bazel target; without one, all tests run that need neither a GPU nor minutes:
  //tests/nn/...             every test of a folder
  //tests/nn:linear_test     one test
  -//tests/trainer/...       leaves a folder out

Options:
  --slow                     also the tests that take minutes
  --gpu                      only the tests that need a GPU
  --config=asan|tsan         with AddressSanitizer and UBSan, or with ThreadSanitizer
  --OPTION[=VALUE]           any other option of 'bazel test', such as --test_filter='Linear.*'
  --                         what follows goes to 'bazel test' as it is, such as: -- -c dbg
  --help                     this text
HELP
}

tags=()
arguments=()
targets=()
gpu="" chosen=""  # chosen: some target was named
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) show_help; exit 0 ;;
    --slow) tags=(--test_tag_filters=-gpu --test_timeout=3600) ;;
    --gpu) gpu=1 tags=(--test_tag_filters=gpu) ;;
    --) shift; arguments+=("$@"); [[ " $*" != *" "[/@:]* ]] || chosen=1; break ;;
    --*) arguments+=("$1") ;;
    -//*) targets+=("$1") ;;
    //* | @* | :* | [!-]*/*) targets+=("$1"); chosen=1 ;;
    *)
      echo "narrowgauge test: expected a target such as //tests/nn/..., got '$1'; Bazel's own arguments go after --" >&2
      exit 2
      ;;
  esac
  shift
done

tools/setup.sh
if [ -n "$chosen" ]; then
  :
elif [ -n "$gpu" ]; then
  # They are tagged manual, so that no wildcard finds them.
  found=$(bazel query --noshow_progress --ui_event_filters=-info 'attr(tags, "\bgpu\b", //tests/...)')
  mapfile -t found <<<"$found"
  targets=("${found[@]}" "${targets[@]}")
else
  targets=(//tests/... "${targets[@]}")
fi

failed_checks=0
python3 tools/check_includes.py || failed_checks=1
events=$(mktemp)
trap 'rm -f "$events"' EXIT
status=0
bazel test --disk_cache="$cache/bazel" --color=no --curses=no --show_progress_rate_limit=15 --keep_going \
  --test_env=NARROWGAUGE_PYTHON="$PWD/tools/python.sh" \
  --test_env=OMPI_ALLOW_RUN_AS_ROOT=1 --test_env=OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
  --build_event_json_file="$events" "${tags[@]}" "${arguments[@]}" -- "${targets[@]}" || status=$?
python3 tools/count_tests.py "$events" "$status" "$failed_checks"
