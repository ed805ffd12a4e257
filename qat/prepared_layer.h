#pragma once

#include <string>

#include "quantization/scheme.h"

namespace narrowgauge::qat {

// A layer that computes with the values its weight will have once quantized.
struct PreparedLayer {
  std::string fqn;
  quantization::Scheme scheme;
  bool learns_range = false;  // see learned_range.h
};

}  // namespace narrowgauge::qat
