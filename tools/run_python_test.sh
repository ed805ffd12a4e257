#!/usr/bin/env bash
# Runs a Python test in the pinned environment: run_python_test.sh FILE.py [ARG ...]
# A file of unittest must run at least one case, none of them skipped, and reports its count to Bazel; any other script
# passes by ending with 0.
set -euo pipefail
python=${NARROWGAUGE_PYTHON:?set by ./narrowgauge test; run the test through it}
grep -qE '^(import|from) .*\bunittest\b' "$1" || exec "$python" "$@"

output=$(mktemp)
trap 'rm -f "$output"' EXIT
status=0
"$python" "$@" 2>&1 | tee "$output" || status=$?
cases=$(sed -nE 's/^Ran ([0-9]+) tests? in .*/\1/p' "$output" | tail -1)
verdict=$(grep -E '^(OK|FAILED|NO TESTS RAN)( \(.*\))?$' "$output" | tail -1 || :)

# From "FAILED (failures=1, errors=2, skipped=3)", or "OK (skipped=3)": all that is no plain pass.
failed=0
for number in $(grep -oE '[0-9]+' <<<"$verdict" || :); do failed=$((failed + number)); done
if [ "${cases:-0}" -eq 0 ]; then
  echo "$1: ran no test case; is unittest.main() missing, or did it end early?" >&2
  cases=1 failed=1
elif [ "$status" -eq 0 ] && [ "$failed" -gt 0 ]; then
  echo "$1: $verdict; skipped cases and expected failures count as failed" >&2
fi
[ "$status" -eq 0 ] || [ "$failed" -gt 0 ] || failed=1
[ "$failed" -le "$cases" ] || cases=$failed  # set-up of a class may fail without a case
if [ -n "${XML_OUTPUT_FILE:-}" ]; then
  cat >"$XML_OUTPUT_FILE" <<XML
<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="$cases"><testsuite name="python" tests="$cases" failures="$failed"/></testsuites>
XML
fi
[ "$failed" -eq 0 ] || exit "$((status ? status : 1))"
