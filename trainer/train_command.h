#pragma once

#include "comm/mpi_session.h"
#include "trainer/command_line.h"

namespace narrowgauge::trainer {

// narrowgauge train on this rank. Returns the exit code: done, or stopped by a signal after a
// checkpoint. Throws what main reports.
int train_command(const TrainOptions& options, comm::MpiSession& session);

}  // namespace narrowgauge::trainer
