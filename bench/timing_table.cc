#include "bench/timing_table.h"

#include <cstdarg>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace narrowgauge::bench {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kMilliseconds = 1e3;  // of a second
constexpr double kMiB = 1 << 20;
constexpr const char* kKind = "narrowgauge bench";  // what a file of this format says it is

__attribute__((format(printf, 1, 2))) std::string print(const char* format, ...) {
  char line[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  return line;
}

Json subject_json(const TimingSubject& subject) {
  return {{"date", subject.date},
          {"machine", subject.machine},
          {"threads", subject.threads},
          {"model", subject.model},
          {"tokens_per_step", subject.tokens_per_step},
          {"steps", subject.steps},
          {"warmup", subject.warmup}};
}

std::string changed(const char* what, const std::string& then, const std::string& now) {
  return then == now ? "" : std::string(what) + " was " + then + ", is " + now;
}

}  // namespace

std::string to_text(const TimingSubject& subject, const std::vector<ModeTiming>& modes) {
  const std::vector<ModeSummary> rows = summarize(modes, subject.tokens_per_step);
  std::string text =
      subject.model + "\n" + subject.machine +
      print(", %ld thread%s; %zu round%s of %ld steps after %ld\n", subject.threads,
            subject.threads == 1 ? "" : "s", modes.front().rounds.size(),
            modes.front().rounds.size() == 1 ? "" : "s", subject.steps, subject.warmup);
  text += print("%-28s %9s %19s %10s %7s %9s %11s\n", "mode", "ms/step", "quartiles", "tokens/s",
                "speed", "peak MiB", "first step");
  for (const ModeSummary& row : rows) {
    text += print("%-28s %9.1f %9.1f %9.1f %10.0f %6.2fx %9.0f %9.2f s\n", row.mode.c_str(),
                  kMilliseconds * row.step_seconds, kMilliseconds * row.first_quartile_seconds,
                  kMilliseconds * row.third_quartile_seconds, row.tokens_per_second, row.ratio,
                  static_cast<double>(row.peak_memory_bytes) / kMiB, row.first_step_seconds);
  }
  return text;
}

std::string to_json(const TimingSubject& subject, const std::vector<ModeTiming>& modes) {
  const std::vector<ModeSummary> rows = summarize(modes, subject.tokens_per_step);
  Json listed = Json::array();
  for (size_t i = 0; i < rows.size(); ++i) {
    const ModeSummary& row = rows[i];
    Json rounds = Json::array();
    for (const TimedRun& run : modes[i].rounds) {
      rounds.push_back({{"step_seconds", run.step_seconds},
                        {"first_step_seconds", run.first_step_seconds},
                        {"peak_memory_bytes", run.peak_memory_bytes}});
    }
    listed.push_back(
        {{"mode", row.mode},
         {"step_seconds", row.step_seconds},
         {"step_seconds_quartiles", {row.first_quartile_seconds, row.third_quartile_seconds}},
         {"tokens_per_second", row.tokens_per_second},
         {"ratio", row.ratio},
         {"peak_memory_bytes", row.peak_memory_bytes},
         {"first_step_seconds", row.first_step_seconds},
         {"rounds", rounds}});
  }
  return Json{{"kind", kKind}, {"subject", subject_json(subject)}, {"modes", listed}}.dump(1) +
         "\n";
}

EarlierTiming earlier_timing(const std::string& json, const std::string& name) {
  try {
    const Json whole = Json::parse(json);
    if (whole.at("kind") != kKind) {
      throw std::runtime_error("another kind of file");
    }
    const Json& subject = whole.at("subject");
    EarlierTiming earlier = {{.date = subject.at("date"),
                              .machine = subject.at("machine"),
                              .threads = subject.at("threads"),
                              .model = subject.at("model"),
                              .tokens_per_step = subject.at("tokens_per_step"),
                              .steps = subject.at("steps"),
                              .warmup = subject.at("warmup")},
                             {}};
    for (const Json& mode : whole.at("modes")) {
      earlier.tokens_per_second[mode.at("mode")] = mode.at("tokens_per_second");
    }
    return earlier;
  } catch (const std::exception& error) {
    throw std::runtime_error(name + ": expected what `narrowgauge bench --json` wrote, got " +
                             error.what());
  }
}

TimingComparison compare(const TimingSubject& subject, const std::vector<ModeTiming>& modes,
                         const EarlierTiming& earlier, double least_ratio) {
  TimingComparison comparison;
  const TimingSubject& then = earlier.subject;
  for (const std::string& warning : {changed("the machine", then.machine, subject.machine),
                                     changed("the number of threads", std::to_string(then.threads),
                                             std::to_string(subject.threads)),
                                     changed("the model", then.model, subject.model)}) {
    if (!warning.empty()) {
      comparison.warnings.push_back(warning);
    }
  }
  comparison.text =
      print("%-28s %10s %10s %7s\n", ("beside " + then.date).c_str(), "tokens/s", "now", "speed");
  for (const ModeSummary& row : summarize(modes, subject.tokens_per_step)) {
    const auto found = earlier.tokens_per_second.find(row.mode);
    if (found == earlier.tokens_per_second.end()) {
      comparison.warnings.push_back("mode " + row.mode + " was not timed then");
      continue;
    }
    const double ratio = row.tokens_per_second / found->second;
    comparison.text += print("%-28s %10.0f %10.0f %6.2fx\n", row.mode.c_str(), found->second,
                             row.tokens_per_second, ratio);
    if (ratio < least_ratio) {
      comparison.slower.push_back(row.mode);
    }
  }
  return comparison;
}

}  // namespace narrowgauge::bench
