#pragma once

#include "trainer/command_line.h"

namespace narrowgauge::trainer {

// narrowgauge quantize: writes a quantized model beside a Hugging Face directory or a run. Prints
// autoquant's table, if asked for it, and the size of the result. Returns the exit code; throws
// what main reports.
int quantize_command(const QuantizeOptions& options);

}  // namespace narrowgauge::trainer
