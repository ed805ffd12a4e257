#pragma once

#include <map>
#include <string>
#include <vector>

#include "bench/step_timing.h"

namespace narrowgauge::bench {

// For people: what was timed, then a line for each mode.
std::string to_text(const TimingSubject& subject, const std::vector<ModeTiming>& modes);

// For programs, and for `earlier_timing`: the table's figures and every step's time.
std::string to_json(const TimingSubject& subject, const std::vector<ModeTiming>& modes);

// What to_json wrote another time.
struct EarlierTiming {
  TimingSubject subject;
  std::map<std::string, double> tokens_per_second;  // by mode
};

// Throws std::runtime_error naming `name` if `json` is nothing that to_json wrote.
EarlierTiming earlier_timing(const std::string& json, const std::string& name);

struct TimingComparison {
  std::string text;                   // a line for each mode that both have
  std::vector<std::string> warnings;  // why the ratios may say nothing about the program
  std::vector<std::string> slower;    // modes below the least ratio
};

// Speed now over speed then. Ratios below `least_ratio` are listed in `slower`.
TimingComparison compare(const TimingSubject& subject, const std::vector<ModeTiming>& modes,
                         const EarlierTiming& earlier, double least_ratio);

}  // namespace narrowgauge::bench
