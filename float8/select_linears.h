#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "float8/config.h"
#include "nn/layer.h"

namespace narrowgauge::float8 {

// Whether one Linear of a model is to compute in fp8, and why.
struct LinearDecision {
  std::string fqn;
  int64_t in_features = 0;   // K
  int64_t out_features = 0;  // N
  bool converted = false;
  std::string reason;  // why it stays as it is; empty if it is converted
};

// The element of filter_fqns that stands for a rule on shapes, as in torchtitan.
inline constexpr const char* kAutoFilter = "auto_filter_small_kn";

// Decides for every Linear below `root`, in the order of registration. It stays as it is if
//   - an element of filter_fqns is part of its name, or, where the element holds * or ?, matches
//     the whole name ("layers.0.*"); or
//   - its weight is tied to another layer, which needs it in high precision; or
//   - in_features or out_features is no multiple of 16, which the fp8 units of GPUs need, unless
//     config.pad_inner_dim; or
//   - filter_fqns holds kAutoFilter and is_too_small.
std::vector<LinearDecision> select_linears(nn::Layer& root, const Float8LinearConfig& config,
                                           const std::vector<std::string>& filter_fqns);

// Whether casts are likely to cost a linear of this shape more than the faster products give back:
// torchao's rule, from its measurements on H100 (torchao 0.17, _auto_filter_for_recipe). Scaling by
// row or block is held to the stricter of its two tables, which is that of rowwise.
bool is_too_small(const Float8LinearConfig& config, int64_t in_features, int64_t out_features);

// One line for each kind of layer (names that differ in numbers alone, and their shape), for
// people: "layers.*.mlp.down_proj  1024 -> 384  x 6  float8". In the order of the decisions.
std::vector<std::string> describe(const std::vector<LinearDecision>& decisions);

}  // namespace narrowgauge::float8
