#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace narrowgauge::bench {

// One way to train the model of a comparison.
struct ConvergenceVariant {
  std::string name;
  std::vector<std::string> overrides;  // {0.7} stands for that share of training.steps
  // Its final loss is meant to be the reference's; others are there to be seen.
  bool is_to_match = true;
};

// Variants that answer one question. The first is what the others are compared with.
struct ConvergenceFamily {
  std::string name;
  std::vector<ConvergenceVariant> variants;
};

// float8: every recipe beside bf16. sparsity: 2:4 throughout or for 70 % of the steps, of all
// linears or of the feed-forward part, beside dense. qat: fake quantization from the first step
// beside bf16. optimizers: narrow states and parameters, and Muon, beside AdamW in fp32.
std::span<const ConvergenceFamily> convergence_families();

// nullptr if there is none of that name.
const ConvergenceFamily* find_convergence_family(std::string_view name);

// The overrides of a run of `steps` steps.
std::vector<std::string> overrides_of(const ConvergenceVariant& variant, int64_t steps);

// The name with everything but letters and digits as "_": a folder's.
std::string folder_name(const std::string& variant);

}  // namespace narrowgauge::bench
