#include "plan/live_bytes.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace narrowgauge::plan {

const char* kind_name(Kind kind) {
  constexpr std::array<const char*, kNumKinds> kNames = {
      "parameters", "optimizer", "gathered", "gradients", "activations", "workspace", "process"};
  return kNames[static_cast<size_t>(kind)];
}

double Bytes::total() const { return std::accumulate(of_kind.begin(), of_kind.end(), 0.0); }

void LiveBytes::take(Kind kind, double bytes) {
  now_.of_kind[static_cast<size_t>(kind)] += bytes;
  if (now_.total() > peak_.total()) {
    peak_ = now_;
    peak_moment_ = moment_;
  }
}

void LiveBytes::give(Kind kind, double bytes) {
  double& live = now_.of_kind[static_cast<size_t>(kind)];
  constexpr double kRounding = 1.0;  // shares of a whole need not be whole bytes
  if (bytes > live + kRounding) {
    throw std::logic_error(std::string("gives back more ") + kind_name(kind) + " than it took in " +
                           moment_);
  }
  live = std::max(0.0, live - bytes);
}

void LiveBytes::turn(Kind from, Kind into, double bytes) {
  give(from, bytes);
  take(into, bytes);
}

}  // namespace narrowgauge::plan
