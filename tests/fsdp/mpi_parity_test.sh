#!/usr/bin/env bash
# mpi_parity_test.sh PROGRAM: training over MPI equals training over threads, on several meshes.
set -euo pipefail
source tests/support/mpirun.sh
for mesh in "1 1" "1 3" "1 4" "2 2" "2 1" "4 1"; do
  read -r replicate shard <<<"$mesh"
  mpirun_ranks $((replicate * shard)) "$1" "$replicate" "$shard"
done
