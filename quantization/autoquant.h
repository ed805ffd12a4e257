#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "quantization/input_statistics.h"
#include "quantization/scheme.h"

namespace narrowgauge::quantization {

// What one scheme is worth for one linear here.
struct SchemeTrial {
  std::string scheme;  // "none": the weight as it is
  double seconds = 0;  // of one product, median
  double sqnr_db = 0;  // of its outputs on calibration inputs; infinity for "none"
  int64_t weight_bytes = 0;
};

struct AutoquantChoice {
  std::string name;  // of the linear
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<SchemeTrial> trials;  // "none" first
  size_t chosen = 0;
};

// Chooses, linear by linear, the fastest of the candidate schemes whose outputs keep a signal to
// noise ratio, timed on this machine. A scheme's time is taken once for a shape, its error for each
// linear. A candidate whose groups do not divide the columns is passed over.
class Autoquant {
 public:
  // min_sqnr_db: the budget, 20 log10(|y| / |y - y_quantized|) over the sampled inputs. num_tokens:
  // rows of x in the timed product (1: decoding).
  Autoquant(std::vector<Scheme> candidates, double min_sqnr_db, int64_t num_tokens);

  // The scheme chosen, or nothing for "none". Adds to choices(). inputs: with at least one row.
  std::optional<Scheme> choose(const std::string& name, const at::Tensor& weight,
                               const InputStatistics& inputs);

  const std::vector<AutoquantChoice>& choices() const { return choices_; }

 private:
  using Shape = std::tuple<std::string, int64_t, int64_t>;  // scheme, rows, cols

  std::vector<Scheme> candidates_;
  double min_sqnr_db_;
  int64_t num_tokens_;
  std::map<Shape, double> seconds_;
  std::vector<AutoquantChoice> choices_;
};

// The table of choices for people: a row a trial, * at the one chosen.
std::string autoquant_table(const std::vector<AutoquantChoice>& choices);

}  // namespace narrowgauge::quantization
