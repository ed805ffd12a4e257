#include "bench/convergence_family.h"

#include <algorithm>
#include <cctype>
#include <cmath>

namespace narrowgauge::bench {
namespace {

using Overrides = std::vector<std::string>;

Overrides with(Overrides first, const Overrides& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

ConvergenceFamily float8_family() {
  ConvergenceFamily family = {"float8", {{"bf16", {"float8.recipe_name=none"}}}};
  for (const char* const recipe :
       {"tensorwise", "rowwise", "rowwise_with_gw_hp", "delayed", "blockwise", "mxfp8"}) {
    family.variants.push_back({recipe, {std::string("float8.recipe_name=") + recipe}});
  }
  return family;
}

ConvergenceFamily sparsity_family() {
  const Overrides sparse = {"sparsity.kind=semi_structured"};
  const Overrides feed_forward = with(sparse, {"sparsity.filter_fqns=[lm_head,self_attn]"});
  const Overrides part = {"sparsity.end_step={0.7}"};
  return {"sparsity",
          {{"dense", {"sparsity.kind=none"}},
           {"70 % sparse, then dense", with(sparse, part)},
           {"70 % sparse feed-forward, then dense", with(feed_forward, part)},
           {"sparse", sparse, false},
           {"sparse feed-forward", feed_forward, false},
           {"sparse, SR-STE", with(sparse, {"sparsity.sr_ste_decay=2.0e-4"}), false},
           {"sparse, greedy masks", with(sparse, {"sparsity.algorithm=largest_abs_values_greedy"}),
            false},
           {"sparse, tensorwise", with(sparse, {"float8.recipe_name=tensorwise"}), false},
           {"sparse, rowwise", with(sparse, {"float8.recipe_name=rowwise"}), false}}};
}

ConvergenceFamily qat_family() {
  ConvergenceFamily family = {"qat", {{"bf16", {"qat.scheme=none"}}}};
  for (const char* const scheme : {"8da4w", "int4-weight-only", "gguf-q4_0", "mxfp4", "nvfp4"}) {
    family.variants.push_back({scheme, {std::string("qat.scheme=") + scheme}, false});
  }
  return family;
}

ConvergenceFamily optimizer_family() {
  const Overrides nearest = {"training.dtype=bfloat16"};
  const Overrides stochastic = with(nearest, {"optimizer.bf16_stochastic_round=true"});
  const Overrides adamw8bit = {"optimizer.name=AdamW8bit"};
  return {"optimizers",
          {{"AdamW fp32", {"optimizer.name=AdamW"}},
           {"AdamW bf16 states", {"optimizer.state_dtype=bfloat16"}},
           {"AdamW8bit", adamw8bit},
           {"AdamWFp8", {"optimizer.name=AdamWFp8"}},
           {"AdamW4bit", {"optimizer.name=AdamW4bit"}},
           {"AdamW bf16 stochastic", stochastic},
           {"AdamW bf16 nearest", nearest, false},
           {"AdamW8bit bf16 stochastic", with(adamw8bit, stochastic)},
           {"Muon", {"optimizer.name=Muon"}, false}}};
}

}  // namespace

std::span<const ConvergenceFamily> convergence_families() {
  static const std::vector<ConvergenceFamily> kFamilies = {float8_family(), sparsity_family(),
                                                           qat_family(), optimizer_family()};
  return kFamilies;
}

const ConvergenceFamily* find_convergence_family(std::string_view name) {
  const auto families = convergence_families();
  const auto found = std::find_if(families.begin(), families.end(),
                                  [&](const auto& family) { return family.name == name; });
  return found == families.end() ? nullptr : &*found;
}

std::vector<std::string> overrides_of(const ConvergenceVariant& variant, int64_t steps) {
  std::vector<std::string> overrides;
  for (std::string text : variant.overrides) {
    const size_t begin = text.find('{');
    const size_t end = text.find('}');
    if (begin != std::string::npos && end != std::string::npos) {
      const double share = std::stod(text.substr(begin + 1, end - begin - 1));
      text.replace(begin, end - begin + 1,
                   std::to_string(std::lround(share * static_cast<double>(steps))));
    }
    overrides.push_back(text);
  }
  return overrides;
}

std::string folder_name(const std::string& variant) {
  std::string name;
  for (const unsigned char character : variant) {
    if (std::isalnum(character) != 0) {
      name += static_cast<char>(character);
    } else if (!name.ends_with('_')) {
      name += '_';
    }
  }
  return name;
}

}  // namespace narrowgauge::bench
