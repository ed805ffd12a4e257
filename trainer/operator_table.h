#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace narrowgauge::trainer {

// Something that ran on a thread of the host: an operator, a function of ours, a node of backward.
// Those of one thread lie inside of one another or apart. Nanoseconds of one clock.
struct HostEvent {
  std::string name;  // "step": a training step; "step/NAME": a phase of one, such as step/backward
  uint64_t thread = 0;
  int64_t begin = 0;
  int64_t end = 0;
  double flops = 0;      // where it is a matrix product, else 0
  std::string operands;  // its shapes, where it is a matrix product
};

// A text for people: where each millisecond of a step goes, as the thread that runs the steps sees
// it. First the phases, then a line for each operator of a phase, the longest first, with its self
// time (without what ran inside of it) and products apart by shape. The lines add up to the step.
// Figures are means over the steps among the events; what lies in no step is left out.
std::string operator_table(std::span<const HostEvent> events);

}  // namespace narrowgauge::trainer
