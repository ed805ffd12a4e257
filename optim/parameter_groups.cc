#include "optim/parameter_groups.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <unordered_set>
#include <utility>

namespace narrowgauge::optim {
namespace {

void check_shard(const std::string& name, const at::Tensor& param, const ParameterShard& shard) {
  std::vector<int64_t> expected = shard.global_sizes;
  const bool has_rows = !expected.empty() && param.dim() > 0;
  if (has_rows) {
    expected[0] = param.size(0);
  }
  TORCH_CHECK(param.sizes() == at::IntArrayRef(expected) && shard.row_begin >= 0 &&
                  (!has_rows || shard.row_begin + param.size(0) <= shard.global_sizes[0]),
              "expected parameter '", name, "' to be rows of ", at::IntArrayRef(shard.global_sizes),
              " from row ", shard.row_begin, ", got sizes ", param.sizes());
}

}  // namespace

std::vector<GroupedParameter> flatten(std::vector<ParameterGroup> groups) {
  std::unordered_set<std::string> seen;
  std::vector<GroupedParameter> parameters;
  for (ParameterGroup& group : groups) {
    TORCH_CHECK(group.names.size() == group.params.size(), "expected one name a parameter, got ",
                group.names.size(), " names and ", group.params.size(), " parameters");
    TORCH_CHECK(group.shards.empty() || group.shards.size() == group.params.size(),
                "expected one shard a parameter or none at all, got ", group.shards.size(),
                " shards and ", group.params.size(), " parameters");
    TORCH_CHECK(group.weight_decay >= 0, "expected weight_decay >= 0, got ", group.weight_decay);
    for (size_t i = 0; i < group.names.size(); ++i) {
      TORCH_CHECK(seen.insert(group.names[i]).second, "expected each parameter once, got '",
                  group.names[i], "' twice");
      ParameterShard shard = group.shards.empty() ? ParameterShard{group.params[i].sizes().vec(), 0}
                                                  : std::move(group.shards[i]);
      check_shard(group.names[i], group.params[i], shard);
      parameters.push_back({std::move(group.names[i]), std::move(group.params[i]), std::move(shard),
                            group.lr_scale, group.weight_decay});
    }
  }
  return parameters;
}

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

bool is_learned_range(const std::string& name) {
  return name.ends_with(".weight_scale") || name.ends_with(".weight_zero_point");
}

bool decays_by_default(const std::string& name, const at::Tensor& param) {
  return param.dim() >= 2 && !is_embedding(name) && !is_learned_range(name);
}

std::vector<ParameterGroup> group_parameters(std::vector<GroupedParameter> parameters,
                                             const GroupingOptions& options) {
  std::vector<ParameterGroup> groups;
  for (GroupedParameter& parameter : parameters) {
    if (!parameter.param.requires_grad()) {
      continue;
    }
    const bool decays = decays_by_default(parameter.name, parameter.param) ||
                        (options.decay_norms_and_embeddings && !is_learned_range(parameter.name));
    const GroupRule* rule = find_rule(options.rules, parameter.name);
    const double lr_scale = rule != nullptr ? rule->lr_scale : 1.0;
    const double by_default = decays ? options.weight_decay : 0.0;
    const double weight_decay =
        rule != nullptr ? rule->weight_decay.value_or(by_default) : by_default;
    auto group = std::find_if(groups.begin(), groups.end(), [&](const ParameterGroup& other) {
      return other.lr_scale == lr_scale && other.weight_decay == weight_decay;
    });
    if (group == groups.end()) {
      group = groups.insert(groups.end(), {{}, {}, lr_scale, weight_decay, {}});
    }
    group->names.push_back(std::move(parameter.name));
    group->params.push_back(std::move(parameter.param));
    group->shards.push_back(std::move(parameter.shard));
  }
  return groups;
}

bool matches_any(const GroupRule& rule, const std::vector<GroupedParameter>& parameters) {
  return std::any_of(parameters.begin(), parameters.end(), [&](const GroupedParameter& parameter) {
    return matches(rule.pattern, parameter.name);
  });
}

std::pair<std::vector<ParameterGroup>, std::vector<ParameterGroup>> split_groups(
    std::vector<ParameterGroup> groups,
    const std::function<bool(const std::string&, const std::vector<int64_t>&)>& is_first) {
  std::pair<std::vector<ParameterGroup>, std::vector<ParameterGroup>> result;
  for (ParameterGroup& group : groups) {
    ParameterGroup parts[2];
    for (ParameterGroup& part : parts) {
      part.lr_scale = group.lr_scale;
      part.weight_decay = group.weight_decay;
    }
    for (size_t i = 0; i < group.names.size(); ++i) {
      ParameterShard shard = group.shards.empty() ? ParameterShard{group.params[i].sizes().vec(), 0}
                                                  : std::move(group.shards[i]);
      ParameterGroup& part = parts[is_first(group.names[i], shard.global_sizes) ? 0 : 1];
      part.names.push_back(std::move(group.names[i]));
      part.params.push_back(std::move(group.params[i]));
      part.shards.push_back(std::move(shard));
    }
    for (int k = 0; k < 2; ++k) {
      if (!parts[k].names.empty()) {
        (k == 0 ? result.first : result.second).push_back(std::move(parts[k]));
      }
    }
  }
  return result;
}

}  // namespace narrowgauge::optim
