#include "optim/codebook.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace narrowgauge::optim {
namespace {

constexpr size_t kTableSize = 256;
constexpr uint32_t kSignBit = 0x80000000U;
constexpr int kE4M3NaN = 0x7f;

// torch.linspace(0.1, 1, num_steps + 1) in fp32: from the nearer end, fused.
std::vector<float> boundaries(int num_steps) {
  const float begin = 0.1F;
  const float end = 1.0F;
  const float step = (end - begin) / static_cast<float>(num_steps);
  std::vector<float> result;
  for (int i = 0; i <= num_steps; ++i) {
    result.push_back(i < (num_steps + 1) / 2
                         ? std::fma(step, static_cast<float>(i), begin)
                         : std::fma(-step, static_cast<float>(num_steps - i), end));
  }
  return result;
}

float e4m3_value(int magnitude) {
  const int exponent = magnitude >> 3;
  const auto mantissa = static_cast<float>(magnitude & 7);
  return exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8.0F + mantissa, exponent - 10);
}

// codes: ascending values; [0, num_codes).
uint8_t nearest_rank(const std::vector<float>& values, int num_codes, float x) {
  int code = 0;
  for (int step = num_codes / 2; step > 0; step /= 2) {
    code += x >= values[static_cast<size_t>(code + step)] ? step : 0;
  }
  const int up = std::min(code + 1, num_codes - 1);
  const float below = values[static_cast<size_t>(code)];
  const float above = values[static_cast<size_t>(up)];
  return static_cast<uint8_t>(x - below >= (above - below) * 0.5F ? up : code);
}

uint8_t nearest_e4m3(float x) {
  const int sign = std::signbit(x) ? 0x80 : 0;
  const float magnitude = std::fabs(x);
  if (std::isnan(x)) {
    return static_cast<uint8_t>(sign | kE4M3NaN);
  }
  int code = 0;
  while (code + 1 < kE4M3NaN && e4m3_value(code + 1) <= magnitude) {
    ++code;
  }
  if (code + 1 < kE4M3NaN) {
    const float middle = 0.5F * (e4m3_value(code) + e4m3_value(code + 1));
    const bool rounds_up = magnitude > middle || (magnitude == middle && code % 2 == 1);
    code += rounds_up ? 1 : 0;
  }
  return static_cast<uint8_t>(sign | code);
}

}  // namespace

Codebook Codebook::dynamic_tree(bool is_signed, int max_exponent_bits, int total_bits) {
  const int fraction_bits = total_bits - 1 - max_exponent_bits;
  std::vector<float> values = {0.0F, 1.0F};
  for (int i = 0; i < max_exponent_bits; ++i) {
    const std::vector<float> edges = boundaries(1 << (i + fraction_bits + (is_signed ? 0 : 1)));
    const auto decade = static_cast<float>(std::pow(10.0, i - (max_exponent_bits - 1)));
    for (size_t k = 0; k + 1 < edges.size(); ++k) {
      const float value = (edges[k] + edges[k + 1]) / 2.0F * decade;
      values.push_back(value);
      if (is_signed) {
        values.push_back(-value);
      }
    }
  }
  std::sort(values.begin(), values.end());
  Codebook codebook;
  codebook.num_codes_ = static_cast<int>(values.size());
  if (codebook.num_codes_ != 1 << total_bits) {
    throw std::logic_error("expected max_exponent_bits = total_bits - 1");
  }
  codebook.values_.assign(kTableSize, std::numeric_limits<float>::quiet_NaN());
  std::copy(values.begin(), values.end(), codebook.values_.begin());
  // Signed: as many codes below zero as above it, and then 1.
  const auto zero = static_cast<uint8_t>(codebook.num_codes_ / 2 - 1);
  codebook.make_tables(is_signed ? CodeSigns{true, zero, zero, 0} : CodeSigns{});
  return codebook;
}

Codebook Codebook::linear4() {
  Codebook codebook;
  codebook.num_codes_ = 16;
  codebook.values_.assign(kTableSize, std::numeric_limits<float>::quiet_NaN());
  for (size_t i = 0; i < 16; ++i) {
    codebook.values_[i] = static_cast<float>(i + 1) / 16.0F;
  }
  codebook.make_tables({});
  return codebook;
}

Codebook Codebook::e4m3() {
  Codebook codebook;
  codebook.num_codes_ = 256;
  codebook.is_float_format_ = true;
  codebook.values_.resize(kTableSize);
  for (int i = 0; i < 128; ++i) {
    const float value = i == kE4M3NaN ? std::numeric_limits<float>::quiet_NaN() : e4m3_value(i);
    codebook.values_[static_cast<size_t>(i)] = value;
    codebook.values_[static_cast<size_t>(i + 128)] = -value;
  }
  codebook.largest_ = 448.0F;
  codebook.make_tables({true, 0, 0xff, 0x7f});
  return codebook;
}

uint8_t Codebook::encode(float x) const {
  return is_float_format_ ? nearest_e4m3(x) : nearest_rank(values_, num_codes_, x);
}

void Codebook::make_tables(const CodeSigns& signs) {
  make_cells();
  make_planes();
  lines_ = std::make_shared<kernels::CodeLines>(
      make_code_lines([this](float x) { return encode(x); }, largest_, signs));
}

void Codebook::make_planes() {
  for (uint32_t byte = 0; byte < sizeof(float); ++byte) {
    for (const float value : values_) {
      planes_.push_back(static_cast<uint8_t>(std::bit_cast<uint32_t>(value) >> (8 * byte)));
    }
  }
}

void Codebook::make_cells() {
  // Codes at the first bits of a cell and at any others.
  const auto code_at = [this](uint32_t sign, int32_t cell, uint32_t low) {
    return encode(std::bit_cast<float>(sign | static_cast<uint32_t>(cell) << 16 | low));
  };
  const auto is_uniform = [&](int32_t cell) {
    return code_at(0, cell, 0) == code_at(0, 0, 0) &&
           code_at(0, cell, 0xffff) == code_at(0, 0, 0) &&
           code_at(kSignBit, cell, 0) == code_at(kSignBit, 0, 0) &&
           code_at(kSignBit, cell, 0xffff) == code_at(kSignBit, 0, 0);
  };
  // x / scale exceeds the largest value by rounding at most, within its cell: the next one can
  // stand for NaN.
  last_cell_ = static_cast<int32_t>(std::bit_cast<uint32_t>(largest_) >> 16) + 1;
  first_cell_ = 0;
  while (is_uniform(first_cell_ + 1)) {
    ++first_cell_;
  }
  for (const uint32_t sign : {0U, kSignBit}) {
    for (int32_t cell = first_cell_; cell < last_cell_; ++cell) {
      const uint32_t below = code_at(sign, cell, 0);
      const uint32_t above = code_at(sign, cell, 0xffff);
      uint32_t low = 0;  // the first bits that give `above`
      for (uint32_t high = 0xffff; below != above && low < high;) {
        const uint32_t middle = (low + high) / 2;
        if (code_at(sign, cell, middle) == below) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      cells_.push_back(below | above << 8 | low << 16);
    }
    const uint32_t nan = encode(std::bit_cast<float>(sign | 0x7fc00000U));
    cells_.push_back(nan | nan << 8);
  }
}

kernels::CodebookTable Codebook::table() const {
  return {values_.data(), cells_.data(),  first_cell_, last_cell_,
          largest_,       planes_.data(), lines_.get()};
}

}  // namespace narrowgauge::optim
