#include "float8/select_linears.h"

#include <fnmatch.h>

#include <algorithm>
#include <string_view>
#include <unordered_map>

#include "nn/swap_linear.h"

namespace narrowgauge::float8 {
namespace {

constexpr int64_t kAlignment = 16;

using OwnersOfTensor = std::unordered_map<const at::TensorImpl*, int>;

void count_owners(const nn::Layer& layer, OwnersOfTensor& owners) {
  for (const auto& parameter : layer.named_parameters(/*recurse=*/false)) {
    ++owners[parameter.value().unsafeGetTensorImpl()];
  }
  for (const auto& [name, child] : layer.child_layers()) {
    count_owners(*child, owners);
  }
}

bool is_glob(const std::string& pattern) {
  return pattern.find_first_of("*?") != std::string::npos;
}

bool matches(const std::string& pattern, const std::string& fqn) {
  return is_glob(pattern) ? fnmatch(pattern.c_str(), fqn.c_str(), 0) == 0
                          : fqn.find(pattern) != std::string::npos;
}

// Empty if nothing speaks against fp8.
std::string reason_against(const nn::Linear& linear, const std::string& fqn,
                           const Float8LinearConfig& config,
                           const std::vector<std::string>& filter_fqns,
                           const OwnersOfTensor& owners) {
  bool filter_by_shape = false;
  for (const std::string& pattern : filter_fqns) {
    if (pattern == kAutoFilter) {
      filter_by_shape = true;
    } else if (matches(pattern, fqn)) {
      return "filter_fqns has " + pattern;
    }
  }
  if (owners.at(linear.weight.unsafeGetTensorImpl()) > 1) {
    return "its weight is tied to another layer";
  }
  const auto [in_features, out_features, bias] = linear.spec;
  if (!config.pad_inner_dim && (in_features % kAlignment != 0 || out_features % kAlignment != 0)) {
    return "not a multiple of 16; pad_inner_dim would pad it";
  }
  if (filter_by_shape && is_too_small(config, in_features, out_features)) {
    return std::string(kAutoFilter) + ": too small to gain";
  }
  return "";
}

// "layers.11.mlp" -> "layers.*.mlp".
std::string without_numbers(const std::string& fqn) {
  std::string kind;
  for (size_t begin = 0; begin <= fqn.size();) {
    const size_t end = std::min(fqn.find('.', begin), fqn.size());
    const std::string part = fqn.substr(begin, end - begin);
    const bool is_number =
        !part.empty() && part.find_first_not_of("0123456789") == std::string::npos;
    kind += (kind.empty() ? "" : ".") + (is_number ? "*" : part);
    begin = end + 1;
  }
  return kind;
}

}  // namespace

std::vector<LinearDecision> select_linears(nn::Layer& root, const Float8LinearConfig& config,
                                           const std::vector<std::string>& filter_fqns) {
  OwnersOfTensor owners;
  count_owners(root, owners);
  std::vector<LinearDecision> decisions;
  const auto decide = [&](const nn::Linear& linear, std::string_view fqn) {
    const std::string name(fqn);
    const std::string reason = reason_against(linear, name, config, filter_fqns, owners);
    decisions.push_back(
        {name, linear.spec.in_features, linear.spec.out_features, reason.empty(), reason});
    return false;  // only asked, not replaced
  };
  nn::swap_linear(root, decide, nullptr);
  return decisions;
}

bool is_too_small(const Float8LinearConfig& config, int64_t in_features, int64_t out_features) {
  if (config.cast_config_weight.spec.granularity == ScalingGranularity::kTensorwise) {
    return in_features <= 4096 && out_features <= 1024;
  }
  return out_features <= 2048 || in_features <= 1024 ||
         (out_features <= 4096 && in_features <= 2048);
}

std::vector<std::string> describe(const std::vector<LinearDecision>& decisions) {
  std::vector<std::pair<std::string, int64_t>> kinds;  // with how many there are
  std::vector<std::string> outcomes;
  for (const LinearDecision& decision : decisions) {
    const std::string kind = without_numbers(decision.fqn) + "  " +
                             std::to_string(decision.in_features) + " -> " +
                             std::to_string(decision.out_features);
    const std::string outcome =
        decision.converted ? "float8" : "as it was (" + decision.reason + ")";
    size_t i = 0;
    while (i < kinds.size() && (kinds[i].first != kind || outcomes[i] != outcome)) {
      ++i;
    }
    if (i == kinds.size()) {
      kinds.emplace_back(kind, 0);
      outcomes.push_back(outcome);
    }
    ++kinds[i].second;
  }
  std::vector<std::string> lines;
  for (size_t i = 0; i < kinds.size(); ++i) {
    lines.push_back(kinds[i].first + "  x " + std::to_string(kinds[i].second) + "  " + outcomes[i]);
  }
  return lines;
}

}  // namespace narrowgauge::float8
