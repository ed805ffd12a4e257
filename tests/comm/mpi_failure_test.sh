#!/usr/bin/env bash
# mpi_failure_test.sh PROGRAM: a rank that throws ends all ranks, non-zero and soon, and its message
# is printed exactly once; so it is when all ranks throw the same.
set -euo pipefail
source tests/support/mpirun.sh
program=$1

fail() {
  echo "FAILED: $1" >&2
  cat "$TEST_TMPDIR/output" >&2
  exit 1
}

for arguments in 0 2 -1 "0 watched" "2 watched" "-1 watched"; do
  status=0
  began=$SECONDS
  # shellcheck disable=SC2086  # the words are meant to split
  mpirun_ranks 3 timeout 60 "$program" $arguments >"$TEST_TMPDIR/output" 2>&1 || status=$?
  [ "$status" -eq 3 ] || fail "expected exit code 3 with arguments $arguments, got $status"
  [ $((SECONDS - began)) -lt 15 ] || fail "expected an end within 15 s, took $((SECONDS - began))"
  told=$(grep -c '^the first cause$' "$TEST_TMPDIR/output" || true)
  [ "$told" -eq 1 ] || fail "expected the cause once with arguments $arguments, got $told times"
done

# No launcher: one rank, no MPI.
status=0
"$program" 0 >"$TEST_TMPDIR/output" 2>&1 || status=$?
[ "$status" -eq 3 ] || fail "expected exit code 3 without mpirun, got $status"
[ "$(cat "$TEST_TMPDIR/output")" = "the first cause" ] || fail "expected the cause alone"
"$program" 1 || fail "expected a process on its own to be rank 0 alone"
