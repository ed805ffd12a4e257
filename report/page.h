#pragma once

#include <string>
#include <vector>

#include "report/chart.h"
#include "report/run_log.h"

namespace narrowgauge::report {

// The charts that `runs` call for, in the order of the page: loss (training and held-out), learning
// rate, gradient norm, throughput, memory, then whatever else was logged. Metrics of the same first
// and last name ("float8/layers.0/saturated", "float8/layers.1/saturated") share a chart, which
// shows those that reach highest. They point into `runs`.
std::vector<Chart> choose_charts(const std::vector<RunLog>& runs);

// A whole HTML page about one run, or one that compares several: numbers, charts, samples and
// settings (of several, what differs). Needs no network, no script and no other file. REQUIRES: at
// least one run.
std::string render_page(const std::vector<RunLog>& runs);

}  // namespace narrowgauge::report
