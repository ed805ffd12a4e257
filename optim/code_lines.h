#pragma once

#include <cstdint>
#include <functional>

#include "optim/kernels/codebook.h"

namespace narrowgauge::optim {

// How a format's codes follow ranks; see kernels::CodeLines, whose fields these are.
struct CodeSigns {
  bool is_signed = false;
  uint8_t zero = 0;
  uint8_t negative_base = 0;
  uint8_t negative_flip = 0;
};

// Lines that give the codes of `encode` for magnitudes up to `largest`, found from it and proven
// right at each of its boundaries. encode: rank by rank as magnitudes grow; boundaries at growing
// distances. Throws std::logic_error if the lines do not fit.
kernels::CodeLines make_code_lines(const std::function<uint8_t(float)>& encode, float largest,
                                   const CodeSigns& signs);

}  // namespace narrowgauge::optim
