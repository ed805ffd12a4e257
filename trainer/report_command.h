#pragma once

#include <filesystem>

#include "trainer/command_line.h"

namespace narrowgauge::trainer {

// narrowgauge report: a page about runs, or their metrics as CSV. Prints what it wrote. Returns the
// exit code.
int report_command(const ReportOptions& options);

// The page of one run as <run>/report.html. Throws std::runtime_error if that cannot be written.
void write_report(const std::filesystem::path& run);

}  // namespace narrowgauge::trainer
