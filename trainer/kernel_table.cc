#include "trainer/kernel_table.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <map>
#include <vector>

namespace narrowgauge::trainer {
namespace {

constexpr size_t kMaxNameLength = 110;
constexpr size_t kLongestGaps = 20;
constexpr double kMicrosecond = 1e3;  // in nanoseconds
constexpr double kMillisecond = 1e6;

struct Row {
  int64_t calls = 0;
  double nanoseconds = 0;
  double flops = 0;
};

using Rows = std::map<std::string, Row>;

struct Gap {
  int64_t nanoseconds;
  std::string after;
  std::string before;
};

__attribute__((format(printf, 2, 3))) void print(std::string& text, const char* format, ...) {
  char line[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  text += line;
}

// Without return type and namespaces that name no kernel, cut to a width.
std::string short_name(std::string name) {
  for (const char* const noise : {"void ", "(anonymous namespace)::", "narrowgauge::", "kernels::",
                                  "at::native::", "<unnamed>::"}) {
    for (size_t at = name.find(noise); at != std::string::npos; at = name.find(noise, at)) {
      name.erase(at, std::string(noise).size());
    }
  }
  return name.substr(0, kMaxNameLength);
}

std::string row_name(const DeviceEvent& event) {
  const std::string name = short_name(event.name);
  return event.flops > 0 ? event.operation + "  " + name : name;
}

std::vector<std::pair<std::string, Row>> longest_first(const Rows& rows) {
  std::vector<std::pair<std::string, Row>> sorted(rows.begin(), rows.end());
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
    return a.second.nanoseconds > b.second.nanoseconds;
  });
  return sorted;
}

// Where no event runs between the first and the last. REQUIRES: sorted by begin.
std::vector<Gap> find_gaps(const std::vector<const DeviceEvent*>& events) {
  std::vector<Gap> gaps;
  const DeviceEvent* last = events.front();
  for (const DeviceEvent* event : events) {
    if (event->begin > last->end) {
      gaps.push_back({event->begin - last->end, short_name(last->name), short_name(event->name)});
    }
    last = event->end > last->end ? event : last;
  }
  return gaps;
}

void print_kernels(std::string& text, const Rows& rows, double whole) {
  print(text, "\n%10s %6s %7s %9s %8s  %s\n", "ms", "%", "calls", "us each", "TFLOP/s", "kernel");
  for (const auto& [name, row] : longest_first(rows)) {
    print(text, "%10.3f %6.2f %7ld %9.1f ", row.nanoseconds / kMillisecond,
          100 * row.nanoseconds / whole, row.calls,
          row.nanoseconds / kMicrosecond / static_cast<double>(row.calls));
    row.flops > 0 ? print(text, "%8.0f", row.flops / row.nanoseconds / 1e3)
                  : print(text, "%8s", "");
    text += "  " + name + "\n";
  }
}

void print_gaps(std::string& text, std::vector<Gap> gaps) {
  std::stable_sort(gaps.begin(), gaps.end(),
                   [](const Gap& a, const Gap& b) { return a.nanoseconds > b.nanoseconds; });
  print(text, "\n%10s  longest gaps\n", "us");
  for (size_t i = 0; i < std::min(gaps.size(), kLongestGaps); ++i) {
    print(text, "%10.1f  ", static_cast<double>(gaps[i].nanoseconds) / kMicrosecond);
    text += gaps[i].after + "  ->  " + gaps[i].before + "\n";
  }
}

void print_calls(std::string& text, std::span<const RuntimeCall> calls) {
  Rows rows;
  for (const RuntimeCall& call : calls) {
    Row& row = rows[call.name];
    ++row.calls;
    row.nanoseconds += static_cast<double>(call.nanoseconds);
  }
  print(text, "\n%10s %7s  calls by the host\n", "ms", "calls");
  for (const auto& [name, row] : longest_first(rows)) {
    print(text, "%10.3f %7ld  ", row.nanoseconds / kMillisecond, row.calls);
    text += name + "\n";
  }
}

}  // namespace

std::string kernel_table(std::span<const DeviceEvent> events, std::span<const RuntimeCall> calls) {
  if (events.empty()) {
    return "nothing ran on the device\n";
  }
  std::vector<const DeviceEvent*> sorted;
  Rows rows;
  int64_t last = 0;
  for (const DeviceEvent& event : events) {
    sorted.push_back(&event);
    Row& row = rows[row_name(event)];
    ++row.calls;
    row.nanoseconds += static_cast<double>(event.end - event.begin);
    row.flops += event.flops;
    last = std::max(last, event.end);
  }
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const DeviceEvent* a, const DeviceEvent* b) { return a->begin < b->begin; });
  const std::vector<Gap> gaps = find_gaps(sorted);
  double idle = 0;
  for (const Gap& gap : gaps) {
    idle += static_cast<double>(gap.nanoseconds);
  }
  const auto whole = static_cast<double>(std::max<int64_t>(1, last - sorted.front()->begin));
  std::string text;
  print(text,
        "%.3f ms from the first kernel to the last: busy %.3f ms (%.1f %%), idle %.3f ms in %zu "
        "gaps; %zu kernels, copies and fills\n",
        whole / kMillisecond, (whole - idle) / kMillisecond, 100 * (whole - idle) / whole,
        idle / kMillisecond, gaps.size(), events.size());
  print_kernels(text, rows, whole);
  print_gaps(text, gaps);
  print_calls(text, calls);
  return text;
}

}  // namespace narrowgauge::trainer
