#!/usr/bin/env bash
# Builds and runs the tests; the last line printed is 'N passed, N failed', counting test cases.
#   tools/run_tests.sh [--slow] [BAZEL ARGUMENT ...]      default target: //tests/...
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${NARROWGAUGE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/narrowgauge}
arguments=()
targets=()
for argument in "$@"; do
  case $argument in
    --slow) arguments+=(--test_tag_filters=-gpu --test_timeout=3600) ;;
    -*) arguments+=("$argument") ;;
    *) targets+=("$argument") ;;
  esac
done
[ ${#targets[@]} -gt 0 ] || targets=(//tests/...)

python3 tools/check_includes.py
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
bazel test --disk_cache="$cache/bazel" --color=no --curses=no --show_progress_rate_limit=15 \
  --test_env=NARROWGAUGE_PYTHON="$PWD/tools/python.sh" \
  --test_env=OMPI_ALLOW_RUN_AS_ROOT=1 --test_env=OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
  --build_event_text_file="$log" "${arguments[@]}" "${targets[@]}" || status=$?
python3 tools/count_tests.py "$log" "$status"
