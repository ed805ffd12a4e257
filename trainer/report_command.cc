#include "trainer/report_command.h"

#include <fstream>
#include <iostream>
#include <stdexcept>
#include <vector>

#include "checkpoint/durable_file.h"
#include "report/metrics_csv.h"
#include "report/page.h"
#include "report/run_log.h"

namespace narrowgauge::trainer {
namespace {

namespace fs = std::filesystem;

// The file appears under its name only when complete.
void write_csv(const fs::path& run) {
  const fs::path path = run / "metrics.csv";
  const fs::path unfinished = path.string() + ".tmp";
  std::ofstream file(unfinished);
  const int64_t num_rows = report::write_metrics_csv(run / "metrics.jsonl", file);
  file.close();
  if (!file) {
    std::error_code ignored;
    fs::remove(unfinished, ignored);
    throw std::runtime_error("cannot write " + path.string() + "; is the disk full?");
  }
  fs::rename(unfinished, path);
  std::cout << path.string() << ": " << num_rows << " rows\n";
}

// Runs of one name ("a/run", "b/run") are told apart by their paths.
void tell_apart(std::vector<report::RunLog>& logs, const std::vector<std::string>& paths) {
  for (size_t i = 0; i < logs.size(); ++i) {
    for (size_t j = 0; j < logs.size(); ++j) {
      if (i != j && logs[i].name == logs[j].name) {
        logs[i].name = paths[i];
        break;
      }
    }
  }
}

}  // namespace

int report_command(const ReportOptions& options) {
  if (options.csv) {
    for (const std::string& run : options.runs) {
      write_csv(run);
    }
    return kExitDone;
  }
  std::vector<report::RunLog> logs;
  for (const std::string& run : options.runs) {
    logs.push_back(report::read_run_log(run));
  }
  tell_apart(logs, options.runs);
  const fs::path output = options.output.empty() ? fs::path(options.runs.front()) / "report.html"
                                                 : fs::path(options.output);
  checkpoint::write_durable_file(output, report::render_page(logs));
  std::cout << output.string() << "\n";
  return kExitDone;
}

void write_report(const fs::path& run) {
  checkpoint::write_durable_file(run / "report.html",
                                 report::render_page({report::read_run_log(run)}));
}

}  // namespace narrowgauge::trainer
