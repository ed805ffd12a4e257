#pragma once

#include <mpi.h>

namespace narrowgauge::comm {

// Throws std::runtime_error with MPI's text when `code` is an error; `call` is what returned it.
void check_mpi(int code, const char* call);

// Returns when the request is complete. As MPI_Wait, but it leaves the processor to others
// meanwhile: MPI's own waits spin, and a rank often has a single core, on which it also computes.
// Throws std::runtime_error.
void wait(MPI_Request& request);

}  // namespace narrowgauge::comm
