#include "optim/parameter_groups.h"

namespace narrowgauge::optim {
namespace {

bool is_embedding(const std::string& name) {
  for (size_t begin = 0; begin < name.size();) {
    const size_t dot = name.find('.', begin);
    const size_t end = dot == std::string::npos ? name.size() : dot;
    const std::string component = name.substr(begin, end - begin);
    if (component.starts_with("embed") || component == "wte") {
      return true;
    }
    begin = end + 1;
  }
  return false;
}

}  // namespace

bool decays_by_default(const std::string& name, const at::Tensor& param) {
  return param.dim() >= 2 && !is_embedding(name);
}

std::vector<ParameterGroup> default_parameter_groups(
    const std::vector<std::pair<std::string, at::Tensor>>& named_params, double weight_decay) {
  ParameterGroup decayed;
  ParameterGroup kept;
  decayed.weight_decay = weight_decay;
  for (const auto& [name, param] : named_params) {
    if (!param.requires_grad()) {
      continue;
    }
    ParameterGroup& group = decays_by_default(name, param) ? decayed : kept;
    group.names.push_back(name);
    group.params.push_back(param);
  }
  std::vector<ParameterGroup> groups;
  for (ParameterGroup* group : {&decayed, &kept}) {
    if (!group->names.empty()) {
      groups.push_back(std::move(*group));
    }
  }
  return groups;
}

}  // namespace narrowgauge::optim
