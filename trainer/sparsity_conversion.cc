#include "trainer/sparsity_conversion.h"

#include <c10/core/GradMode.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "float8/float8_linear.h"
#include "fsdp/fully_shard.h"
#include "nn/swap_linear.h"
#include "sparsity/semi_sparse_linear.h"
#include "trainer/float8_semi_sparse_linear.h"

namespace narrowgauge::trainer {
namespace {

using sparsity::SemiSparseMask;

sparsity::TileAlgorithm parse_algorithm(const std::string& name) {
  using Algorithm = sparsity::TileAlgorithm;
  return name == "optimal"                     ? Algorithm::kOptimal
         : name == "largest_abs_values_greedy" ? Algorithm::kLargestAbsValuesGreedy
                                               : Algorithm::kCausal1122;
}

sparsity::SemiSparseOptions linear_options(const SparsityConfig& config) {
  return {parse_algorithm(config.algorithm),
          config.gradient == "masked" ? sparsity::GradientType::kMasked
                                      : sparsity::GradientType::kStraightThrough,
          config.sr_ste_decay};
}

// Empty if nothing speaks against 2:4.
std::string reason_against(const nn::Linear& linear, const std::string& fqn,
                           const SparsityConfig& config) {
  for (const std::string& pattern : config.filter_fqns) {
    if (fqn.find(pattern) != std::string::npos) {
      return "filter_fqns has " + pattern;
    }
  }
  if (!sparsity::has_semi_structured_shape(linear.spec.out_features, linear.spec.in_features)) {
    return "out_features is no multiple of 4, or in_features none of 8";
  }
  return "";
}

class SparsityAction final : public StepAction {
 public:
  SparsityAction(const SparsityConfig& config, nn::Transformer& model, int64_t num_backwards)
      : config_(config), parameters_(fsdp::sharded_parameters(model)) {
    for (const auto& item : model.named_modules()) {
      if (const auto linear = std::dynamic_pointer_cast<SemiSparseMask>(item.value())) {
        linear->options.sr_ste_decay = config.sr_ste_decay / static_cast<double>(num_backwards);
        linears_.emplace_back(item.key(), linear);
      }
    }
  }

  void before_training() override {
    for (const auto& [name, linear] : linears_) {
      linear->take_mask();
    }
  }

  void before_step(int64_t step) override {
    is_sparse_ = step >= config_.start_step && (config_.end_step == 0 || step <= config_.end_step);
    const bool refresh = (step - config_.start_step) % config_.mask_interval == 0;
    for (const auto& [name, linear] : linears_) {
      linear->set_sparse(is_sparse_);
      linear->set_refresh_mask(refresh);
    }
  }

  StepReport after_step(int64_t step) override {
    StepReport report;
    if (step == config_.start_step && step > 1) {
      report.warnings.push_back("step " + std::to_string(step) + "  sparsity: 2:4 from here on");
    }
    if (step == config_.end_step) {
      write_zeros();
      report.warnings.push_back("step " + std::to_string(step) + "  sparsity: dense from here on");
    }
    return report;
  }

  void after_training() override {
    if (is_sparse_) {
      write_zeros();
    }
  }

  NamedBuffers named_buffers() override {
    NamedBuffers buffers;
    for (const auto& [name, linear] : linears_) {
      buffers.emplace_back("sparsity." + name + ".mask", linear->mask());
    }
    return buffers;
  }

 private:
  // Into the weights, where the last forward's masks are: the plain linear computes what the sparse
  // one did.
  void write_zeros() {
    const at::NoGradGuard no_grad;
    for (const auto& [name, linear] : linears_) {
      const std::string fqn = name + ".weight";
      const auto parameter = std::find_if(parameters_.begin(), parameters_.end(),
                                          [&](const auto& p) { return p.fqn == fqn; });
      TORCH_INTERNAL_ASSERT(parameter != parameters_.end(), "no parameter ", fqn);
      const at::Tensor keep = sparsity::unpack_mask(
          linear->mask().narrow(0, parameter->row_begin, parameter->local.size(0)));
      parameter->local.mul_(keep.to(parameter->local.options()));
    }
  }

  SparsityConfig config_;
  std::vector<fsdp::ShardedParameter> parameters_;
  std::vector<std::pair<std::string, std::shared_ptr<SemiSparseMask>>> linears_;
  bool is_sparse_ = false;
};

}  // namespace

int64_t convert_to_sparse(const SparsityConfig& config, nn::Transformer& model, bool speaks) {
  if (config.kind == kNoSparsity || config.kind == kPrunedWeights) {
    return 0;
  }
  const sparsity::SemiSparseOptions options = linear_options(config);
  const auto filter = [&](const nn::Linear& linear, std::string_view fqn) {
    const std::string reason = reason_against(linear, std::string(fqn), config);
    if (speaks && !reason.empty()) {
      std::fprintf(stderr, "sparsity: %s stays dense (%s)\n", std::string(fqn).c_str(),
                   reason.c_str());
    }
    return reason.empty();
  };
  int64_t num_float8 = 0;
  const auto make = [&](const nn::Linear& source) -> std::shared_ptr<nn::Linear> {
    if (config.kind == "semi_structured_activation") {
      return std::make_shared<sparsity::SemiSparseActivationLinear>(source, options.algorithm);
    }
    if (const auto* linear = dynamic_cast<const float8::Float8Linear*>(&source)) {
      ++num_float8;
      return std::make_shared<Float8SemiSparseLinear>(source, linear->config(), options);
    }
    return std::make_shared<sparsity::SemiSparseLinear>(source, options);
  };
  const int64_t count = nn::swap_linear(model, filter, make);
  if (speaks) {
    std::fprintf(stderr, "sparsity %s: %ld linears, masks by %s\n", config.kind.c_str(), count,
                 config.algorithm.c_str());
    if (num_float8 > 0) {
      std::fprintf(stderr, "sparsity with float8: %ld of them cast the masked weight\n",
                   num_float8);
    }
  }
  return count;
}

std::unique_ptr<StepAction> make_sparsity_action(const SparsityConfig& config,
                                                 nn::Transformer& model, int64_t num_backwards) {
  return std::make_unique<SparsityAction>(config, model, num_backwards);
}

}  // namespace narrowgauge::trainer
