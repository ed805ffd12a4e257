#include "trainer/operator_table.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

namespace narrowgauge::trainer {
namespace {

constexpr double kMicrosecond = 1e3;  // in nanoseconds
constexpr double kMillisecond = 1e6;
constexpr double kLeastShare = 0.001;  // of the step; shorter lines are one line together
constexpr size_t kMaxNameLength = 90;
constexpr std::string_view kStep = "step";
constexpr std::string_view kPhase = "step/";
constexpr std::string_view kNoOperator = "(in no operator)";
constexpr std::string_view kNode = "torch::autograd::CppNode<";  // of a function of ours, up to >
// The engine's wrapper of a node of backward: what it does itself belongs to the phase.
constexpr std::string_view kWrapper = "autograd::engine::evaluate_function: ";

struct Row {
  int64_t calls = 0;
  int64_t nanoseconds = 0;
  double flops = 0;
};

struct RowName {
  std::string phase;
  std::string name;
  auto operator<=>(const RowName&) const = default;
};

struct Table {
  int64_t num_steps = 0;
  int64_t nanoseconds = 0;                // of all steps
  std::map<std::string, int64_t> phases;  // what lies inside, whole
  std::map<RowName, Row> rows;
};

// An event that has begun, among those it lies in.
struct Open {
  const HostEvent* event;
  int64_t self;       // nanoseconds without what ran inside, as far as known
  bool in_step;       // is a step, or lies in one
  std::string phase;  // that it is or lies in
};

__attribute__((format(printf, 2, 3))) void print(std::string& text, const char* format, ...) {
  char line[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  text += line;
}

std::string row_name(const HostEvent& event) {
  const bool is_frame =
      event.name == kStep || event.name.starts_with(kPhase) || event.name.starts_with(kWrapper);
  std::string name = is_frame ? std::string(kNoOperator) : event.name;
  if (name.starts_with(kNode) && name.ends_with('>')) {
    name = name.substr(kNode.size(), name.size() - kNode.size() - 1);
  }
  for (const std::string_view noise : {"narrowgauge::", "(anonymous namespace)::"}) {
    for (size_t at = name.find(noise); at != std::string::npos; at = name.find(noise, at)) {
      name.erase(at, noise.size());
    }
  }
  return (name + (event.operands.empty() ? "" : " " + event.operands)).substr(0, kMaxNameLength);
}

void close(const Open& open, Table& table) {
  if (!open.in_step) {
    return;
  }
  const std::string name = row_name(*open.event);
  Row& row = table.rows[{open.phase, name}];
  row.calls += name == kNoOperator ? 0 : 1;
  row.nanoseconds += open.self;
  row.flops += open.event->flops;
}

Open opened(const HostEvent& event, const std::vector<Open>& around, Table& table) {
  Open open = {&event, event.end - event.begin, !around.empty() && around.back().in_step,
               around.empty() ? "" : around.back().phase};
  if (event.name == kStep && !open.in_step) {
    open.in_step = true;
    ++table.num_steps;
    table.nanoseconds += open.self;
  } else if (open.in_step && event.name.starts_with(kPhase) && open.phase.empty()) {
    open.phase = event.name.substr(kPhase.size());
    table.phases[open.phase] += open.self;
  }
  return open;
}

// REQUIRES: of one thread, sorted by begin, the longer first.
void add_thread(std::span<const HostEvent* const> events, Table& table) {
  std::vector<Open> open;
  for (const HostEvent* event : events) {
    while (!open.empty() && open.back().event->end <= event->begin) {
      close(open.back(), table);
      open.pop_back();
    }
    if (!open.empty()) {
      open.back().self -= event->end - event->begin;
    }
    open.push_back(opened(*event, open, table));
  }
  for (; !open.empty(); open.pop_back()) {
    close(open.back(), table);
  }
}

Table make_table(std::span<const HostEvent> events) {
  std::map<uint64_t, std::vector<const HostEvent*>> threads;
  for (const HostEvent& event : events) {
    threads[event.thread].push_back(&event);
  }
  Table table;
  for (auto& [thread, of_thread] : threads) {
    std::stable_sort(of_thread.begin(), of_thread.end(), [](const auto* a, const auto* b) {
      return a->begin != b->begin ? a->begin < b->begin : a->end > b->end;
    });
    add_thread(of_thread, table);
  }
  return table;
}

void print_phases(std::string& text, const Table& table) {
  std::vector<std::pair<std::string, int64_t>> phases(table.phases.begin(), table.phases.end());
  int64_t rest = table.nanoseconds;
  for (const auto& [phase, nanoseconds] : phases) {
    rest -= nanoseconds;
  }
  phases.emplace_back("the rest", rest);
  std::stable_sort(phases.begin(), phases.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  const auto steps = static_cast<double>(table.num_steps);
  print(text, "%.3f ms a step, mean of %ld:",
        static_cast<double>(table.nanoseconds) / steps / kMillisecond, table.num_steps);
  const char* separator = " ";
  for (const auto& [phase, nanoseconds] : phases) {
    print(text, "%s%s %.3f", separator, phase.c_str(),
          static_cast<double>(nanoseconds) / steps / kMillisecond);
    separator = ", ";
  }
  text += "\n";
}

void print_row(std::string& text, const Table& table, const RowName& name, const Row& row) {
  const auto steps = static_cast<double>(table.num_steps);
  const auto nanoseconds = static_cast<double>(row.nanoseconds);
  print(text, "%10.3f %6.2f ", nanoseconds / steps / kMillisecond,
        100 * nanoseconds / static_cast<double>(table.nanoseconds));
  row.calls > 0 ? print(text, "%7.1f %9.1f ", static_cast<double>(row.calls) / steps,
                        nanoseconds / kMicrosecond / static_cast<double>(row.calls))
                : print(text, "%7s %9s ", "", "");
  row.flops > 0 ? print(text, "%8.0f", row.flops / nanoseconds) : print(text, "%8s", "");
  text += "  ";
  print(text, "%-13s ", name.phase.c_str());
  text += name.name + "\n";
}

void print_rows(std::string& text, const Table& table) {
  std::vector<std::pair<RowName, Row>> sorted(table.rows.begin(), table.rows.end());
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
    return a.second.nanoseconds > b.second.nanoseconds;
  });
  print(text, "\n%10s %6s %7s %9s %8s  %-13s %s\n", "ms", "%", "calls", "us each", "GFLOP/s",
        "phase", "operator");
  Row rest;
  size_t num_short = 0;
  for (const auto& [name, row] : sorted) {
    if (static_cast<double>(row.nanoseconds) <
        kLeastShare * static_cast<double>(table.nanoseconds)) {
      ++num_short;
      rest.calls += row.calls;
      rest.nanoseconds += row.nanoseconds;
    } else {
      print_row(text, table, name, row);
    }
  }
  if (num_short > 0) {
    print_row(text, table, {"", "(lines below 0.1 %: " + std::to_string(num_short) + ")"}, rest);
  }
}

}  // namespace

std::string operator_table(std::span<const HostEvent> events) {
  const Table table = make_table(events);
  if (table.nanoseconds == 0) {
    return "no step among the events\n";
  }
  std::string text;
  print_phases(text, table);
  print_rows(text, table);
  return text;
}

}  // namespace narrowgauge::trainer
