#pragma once

#include "trainer/command_line.h"

namespace narrowgauge::trainer {

// narrowgauge import: turns a llama2.c .bin file, or any Hugging Face directory of a supported
// architecture, into a Hugging Face directory as export writes it. Returns the exit code; throws
// what main reports.
int import_command(const ImportOptions& options);

}  // namespace narrowgauge::trainer
