#include "report/metrics_csv.h"

#include <charconv>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "report/run_log.h"

namespace narrowgauge::report {
namespace {

std::string number_text(double value) {
  if (std::isnan(value)) {
    return "nan";
  }
  if (std::isinf(value)) {
    return value > 0 ? "inf" : "-inf";
  }
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

std::string quoted(const std::string& name) {
  if (name.find_first_of(",\"\r\n") == std::string::npos) {
    return name;
  }
  std::string text = "\"";
  for (const char c : name) {
    text += c == '"' ? "\"\"" : std::string(1, c);
  }
  return text + "\"";
}

}  // namespace

int64_t write_metrics_csv(const std::filesystem::path& metrics_file, std::ostream& out) {
  std::map<std::string, size_t> columns;
  std::vector<std::string> names;
  visit_metrics(metrics_file, [&](int64_t, int64_t, const std::string& metric, double) {
    if (columns.emplace(metric, names.size()).second) {
      names.push_back(metric);
    }
  });
  out << "step";
  for (const std::string& name : names) {
    out << "," << quoted(name);
  }
  out << "\n";
  int64_t num_rows = 0;
  int64_t open_line = -1;
  int64_t open_step = 0;
  std::vector<std::string> row(names.size());
  const auto finish_row = [&] {
    if (open_line < 0) {
      return;
    }
    out << open_step;
    for (std::string& cell : row) {
      out << "," << cell;
      cell.clear();
    }
    out << "\n";
    ++num_rows;
  };
  visit_metrics(metrics_file,
                [&](int64_t line, int64_t step, const std::string& metric, double value) {
                  if (line != open_line) {
                    finish_row();
                    open_line = line;
                    open_step = step;
                  }
                  row[columns.at(metric)] = number_text(value);
                });
  finish_row();
  return num_rows;
}

}  // namespace narrowgauge::report
