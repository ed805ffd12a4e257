#include "trainer/bench_mode.h"

#include <map>
#include <string_view>

#include "trainer/nearest_name.h"
#include "trainer/usage_error.h"

namespace narrowgauge::trainer {
namespace {

const std::map<std::string, std::string> kKeys = {{"float8", "float8.recipe_name"},
                                                  {"optimizer", "optimizer.name"},
                                                  {"qat", "qat.scheme"},
                                                  {"sparsity", "sparsity.kind"}};

std::vector<std::string> plain(const std::string& dtype) {
  return {"float8.recipe_name=none", "qat.scheme=none", "sparsity.kind=none",
          "training.mixed_precision_param=" + dtype};
}

}  // namespace

std::vector<std::string> mode_overrides(const std::string& mode) {
  if (mode == "configured") {
    return {};
  }
  if (mode == "fp32") {
    return plain("float32");
  }
  std::vector<std::string> overrides = plain("bfloat16");
  if (mode == "bf16") {
    return overrides;
  }
  const size_t dot = mode.find('.');
  const auto key = kKeys.find(mode.substr(0, dot));
  if (dot == std::string::npos || key == kKeys.end()) {
    constexpr std::string_view kForms[] = {"bf16",          "fp32",       "configured",
                                           "float8.RECIPE", "qat.SCHEME", "sparsity.KIND",
                                           "optimizer.NAME"};
    throw UsageError("--modes: expected some of " + join(kForms) + ", got " + mode +
                     "; `narrowgauge help config` lists recipes and schemes");
  }
  overrides.push_back(key->second + "=" + mode.substr(dot + 1));
  return overrides;
}

std::string configured_mode(const TrainConfig& config) {
  std::vector<std::string> at_work;
  if (config.float8.recipe_name != kNoFloat8) {
    at_work.push_back("float8." + config.float8.recipe_name);
  }
  if (config.qat.scheme != kNoScheme) {
    at_work.push_back("qat." + config.qat.scheme);
  }
  if (config.sparsity.kind != kNoSparsity) {
    at_work.push_back("sparsity." + config.sparsity.kind);
  }
  const std::string& dtype = config.training.mixed_precision_param;
  if (dtype == "float32" && at_work.empty()) {
    return "fp32";
  }
  if (dtype != "bfloat16" || at_work.size() > 1) {
    return "configured";
  }
  return at_work.empty() ? "bf16" : at_work.front();
}

}  // namespace narrowgauge::trainer
