#include "report/run_log.h"

#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>

namespace narrowgauge::report {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// JSON has no words for these; Python's writer and others write them bare. Outside of strings they
// become null, which stands for "not a number" here.
std::string without_bare_words(const std::string& line) {
  std::string text;
  bool in_string = false;
  for (size_t i = 0; i < line.size(); ++i) {
    if (line[i] == '"' && (i == 0 || line[i - 1] != '\\')) {
      in_string = !in_string;
    }
    bool replaced = false;
    for (const std::string_view word : {"-Infinity", "Infinity", "NaN", "nan", "-inf", "inf"}) {
      if (!in_string && line.compare(i, word.size(), word) == 0) {
        text += "null";
        i += word.size() - 1;
        replaced = true;
        break;
      }
    }
    if (!replaced) {
      text += line[i];
    }
  }
  return text;
}

std::optional<Json> parse_object(const std::string& line) {
  Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) {
    json = Json::parse(without_bare_words(line), nullptr, /*allow_exceptions=*/false);
  }
  return json.is_object() ? std::optional(std::move(json)) : std::nullopt;
}

std::optional<double> number(const Json& value) {
  if (value.is_number()) {
    return value.get<double>();
  }
  if (value.is_null()) {
    return kNaN;
  }
  if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    if (text == "nan" || text == "NaN") {
      return kNaN;
    }
    if (text == "inf" || text == "Infinity") {
      return kInfinity;
    }
    if (text == "-inf" || text == "-Infinity") {
      return -kInfinity;
    }
  }
  return std::nullopt;
}

void visit_object(const Json& object, const std::string& prefix, int64_t line, int64_t step,
                  const MetricVisitor& visit) {
  for (const auto& [name, value] : object.items()) {
    if (prefix.empty() && name == "step") {
      continue;
    }
    if (value.is_object()) {
      visit_object(value, prefix + name + "/", line, step, visit);
    } else if (const auto parsed = number(value)) {
      visit(line, step, prefix + name, *parsed);
    }
  }
}

std::optional<int64_t> step_of(const Json& object) {
  const auto found = object.find("step");
  return found != object.end() && found->is_number_integer() ? std::optional(found->get<int64_t>())
                                                             : std::nullopt;
}

std::string text_of(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

// Keeps the first half and the last half of kMaxSamples.
std::vector<Sample> read_samples(const std::filesystem::path& path) {
  std::vector<Sample> samples;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const auto object = parse_object(line);
    const auto step = object ? step_of(*object) : std::nullopt;
    if (!step) {
      continue;
    }
    if (samples.size() == RunLog::kMaxSamples) {
      samples.erase(samples.begin() + RunLog::kMaxSamples / 2);
    }
    samples.push_back({*step, text_of(*object, "prompt"), text_of(*object, "text")});
  }
  return samples;
}

// config.yaml as train writes it: a section a line, then its keys, indented. Taken as text, so that
// a configuration of another version reads as well.
std::map<std::string, std::string> read_settings(const std::filesystem::path& path) {
  std::map<std::string, std::string> settings;
  std::ifstream file(path);
  std::string section;
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    const size_t begin = line.find_first_not_of(' ');
    if (colon == std::string::npos || begin == std::string::npos || line[begin] == '#') {
      continue;
    }
    const std::string name = line.substr(begin, colon - begin);
    if (begin == 0) {
      section = name;
    } else {
      const size_t value = line.find_first_not_of(' ', colon + 1);
      settings[section + "." + name] = value == std::string::npos ? "" : line.substr(value);
    }
  }
  return settings;
}

}  // namespace

int64_t visit_metrics(const std::filesystem::path& metrics_file, const MetricVisitor& visit) {
  std::ifstream file(metrics_file);
  if (!file) {
    throw std::runtime_error("cannot read " + metrics_file.string() +
                             "; expected a run directory, such as runs/quickstart");
  }
  int64_t num_bad = 0;
  int64_t number_of_line = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.empty()) {
      continue;
    }
    const auto object = parse_object(line);
    const auto step = object ? step_of(*object) : std::nullopt;
    if (!step) {
      ++num_bad;
      continue;
    }
    visit_object(*object, "", number_of_line++, *step, visit);
  }
  return num_bad;
}

RunLog read_run_log(const std::filesystem::path& directory) {
  RunLog log;
  const std::filesystem::path absolute = std::filesystem::weakly_canonical(directory);
  log.name = absolute.filename().string();
  int64_t last_line = -1;
  int64_t last_loss_step = -1;
  log.num_bad_lines = visit_metrics(
      directory / "metrics.jsonl",
      [&](int64_t line, int64_t step, const std::string& metric, double value) {
        if (line != last_line) {
          last_line = line;
          ++log.num_lines;
        }
        if (metric == "loss") {
          log.num_repeated += step <= last_loss_step ? 1 : 0;
          last_loss_step = step;
        }
        // null in place of a number that never was one (an empty object, say) is no value.
        const bool is_gap = std::isnan(value) && metric != "loss" && metric != "grad_norm";
        if (!is_gap || log.series.contains(metric)) {
          log.series[metric].add(step, value);
        }
      });
  log.samples = read_samples(directory / "samples.jsonl");
  log.settings = read_settings(directory / "config.yaml");
  return log;
}

}  // namespace narrowgauge::report
