# Sourced: mpirun_ranks N COMMAND... runs N ranks of COMMAND on this host, any number on any number
# of cores. vader's single-copy mechanism needs a system call that containers often forbid.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_btl=self,vader OMPI_MCA_btl_vader_single_copy_mechanism=none
# Open MPI leaves some of its memory behind at the end, which a leak check would blame on the test.
export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0

mpirun_ranks() {
  local ranks=$1
  shift
  # The first rank alone writes the report of cases: all would write one file.
  NARROWGAUGE_TEST_RANKS=$ranks mpirun --oversubscribe --bind-to none -np "$ranks" bash -c '
    [ "$OMPI_COMM_WORLD_RANK" = 0 ] || unset XML_OUTPUT_FILE
    exec "$@"' -- "$@"
}
