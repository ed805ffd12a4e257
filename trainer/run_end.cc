#include "trainer/run_end.h"

#include <algorithm>
#include <cstdio>

#include "plan/plan_text.h"
#include "trainer/planned_run.h"
#include "trainer/report_command.h"

namespace narrowgauge::trainer {
namespace {

plan::RunPlan plan_of(const TrainConfig& config, const RankPlan& ranks) {
  return plan::plan_run(training_spec(config, ranks), run_hardware(config, ranks.world_size()), {});
}

}  // namespace

void end_run(const TrainConfig& config, const RankPlan& ranks, const RunDirectory& run,
             const MeasuredRun& measured) {
  try {
    if (measured.step_seconds > 0) {
      const std::string text = plan::compare_text(plan_of(config, ranks), measured.step_seconds,
                                                  static_cast<double>(measured.peak_memory_bytes));
      std::fputs(text.c_str(), stderr);
    }
    write_report(run.path());
    std::fprintf(stderr, "report %s\n", (run.path() / "report.html").c_str());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "no report: %s\n", error.what());
  }
}

std::string explain_memory_shortage(const std::exception& error, const TrainConfig& config,
                                    const RankPlan& ranks) {
  const std::string what = error.what();
  constexpr const char* kSigns[] = {"out of memory", "can't allocate memory", "bad_alloc"};
  const bool is_shortage = std::any_of(std::begin(kSigns), std::end(kSigns), [&](const char* sign) {
    return what.find(sign) != std::string::npos;
  });
  if (!is_shortage) {
    return "";
  }
  return "out of memory: " + what.substr(0, what.find('\n')) + "\n" +
         plan::memory_text(plan_of(config, ranks));
}

}  // namespace narrowgauge::trainer
