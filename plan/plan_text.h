#pragma once

#include <string>

#include "plan/run_plan.h"

namespace narrowgauge::plan {

// The plan as a table for people, lines of at most 100 columns.
std::string to_text(const RunPlan& plan);

// One JSON object; bytes and seconds as numbers, null for what is unknown. docs/PLAN.md lists it.
std::string to_json(const RunPlan& plan);

// The table of memory alone, for a run that ran out of it.
std::string memory_text(const RunPlan& plan);

// Measured against planned, one line each for time and memory. A measured 0 is left out.
std::string compare_text(const RunPlan& plan, double measured_step_seconds,
                         double measured_peak_bytes);

// The settings that make `to` of `from`, as overrides: "training.local_batch_size=1 ...".
std::string describe_change(const TrainingSpec& from, const TrainingSpec& to);

}  // namespace narrowgauge::plan
