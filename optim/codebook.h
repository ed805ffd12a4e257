#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "optim/code_lines.h"
#include "optim/kernels/codebook.h"

namespace narrowgauge::optim {

// The values that a low-bit optimizer state can take, relative to the scale of its block.
class Codebook {
 public:
  // bitsandbytes' dynamic tree (Dettmers 2016) as torchao 0.17 computes it
  // (optim/quant_utils.py::create_dynamic_map): 2^total_bits values, sorted, the last one 1. Each
  // decade from 10^-(max_exponent_bits - 1) up has twice the values of the one below.
  static Codebook dynamic_tree(bool is_signed, int max_exponent_bits, int total_bits);
  // 1/16, 2/16, ..., 1. It has no zero: the smallest code stands for it.
  static Codebook linear4();
  // float8_e4m3fn; scales are such that a block's largest magnitude becomes 448.
  static Codebook e4m3();

  int num_codes() const { return num_codes_; }
  // [256], by code; NaN beyond num_codes().
  const std::vector<float>& values() const { return values_; }

  // The reference that the tables are made from. Sorted values: the nearest, ties up, by torchao's
  // fp32 comparisons; NaN gives 0. e4m3: to nearest even, saturated at 448, NaN stays NaN.
  uint8_t encode(float x) const;

  // Valid while this object lives, also after a move.
  kernels::CodebookTable table() const;

 private:
  Codebook() = default;
  // The tables, from values_ and what encode returns.
  void make_tables(const CodeSigns& signs);
  void make_cells();
  void make_planes();

  std::vector<float> values_;
  int num_codes_ = 0;
  bool is_float_format_ = false;  // codes are sign and magnitude, not ranks
  float largest_ = 1.0F;
  std::vector<uint32_t> cells_;
  std::vector<uint8_t> planes_;
  std::shared_ptr<const kernels::CodeLines> lines_;  // shared by copies
  int32_t first_cell_ = 0;
  int32_t last_cell_ = 0;
};

}  // namespace narrowgauge::optim
