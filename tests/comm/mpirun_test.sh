#!/usr/bin/env bash
# mpirun_test.sh RANKS PROGRAM: PROGRAM is a gtest that every rank runs.
set -euo pipefail
source tests/support/mpirun.sh
mpirun_ranks "$1" "$2"
