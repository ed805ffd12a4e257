#pragma once

#include "trainer/command_line.h"

namespace narrowgauge::trainer {

// narrowgauge export: writes a checkpoint of a run as a Hugging Face directory. Returns the exit
// code; throws what main reports.
int export_command(const ExportOptions& options);

}  // namespace narrowgauge::trainer
