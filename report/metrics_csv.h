#pragma once

#include <cstdint>
#include <filesystem>
#include <ostream>

namespace narrowgauge::report {

// metrics.jsonl as CSV (RFC 4180): one row a line of the log in its order, the column "step" first,
// then every metric in the order of its first appearance; empty where a line has none. Numbers
// round-trip; not-finite ones read nan, inf, -inf. Reads the file twice and holds one row. Returns
// the number of rows. Throws std::runtime_error if the log cannot be read.
int64_t write_metrics_csv(const std::filesystem::path& metrics_file, std::ostream& out);

}  // namespace narrowgauge::report
