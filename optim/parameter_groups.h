#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "optim/group_rule.h"
#include "optim/optimizer.h"

namespace narrowgauge::optim {

// One parameter with what its group says.
struct GroupedParameter {
  std::string name;
  at::Tensor param;
  ParameterShard shard;
  double lr_scale = 1.0;
  double weight_decay = 0.0;
};

// The parameters of all groups, in order. Throws c10::Error if a group's lists differ in length, a
// name repeats, a weight decay is negative or a shard's rows are not within its whole.
std::vector<GroupedParameter> flatten(std::vector<ParameterGroup> groups);

// Whether a component of the name begins with "embed", or is "wte".
bool is_embedding(const std::string& name);

// Whether it is a range that quantization-aware training learns (qat/learned_range.h): a name that
// ends with ".weight_scale" or ".weight_zero_point".
bool is_learned_range(const std::string& name);

// Whether weight decay applies by default: matrices decay; norm weights and biases (fewer than two
// dims), embedding tables and learned ranges do not. A head tied to the embedding is the embedding.
bool decays_by_default(const std::string& name, const at::Tensor& param);

// How parameters are put into groups.
struct GroupingOptions {
  double weight_decay = 0.0;                // of those that decay
  bool decay_norms_and_embeddings = false;  // all do
  std::vector<GroupRule> rules = {};        // the first that matches a name has its way
};

// The parameters that require a gradient, those of equal learning-rate scale and weight decay in
// one group; order within a group, and of groups, is that of `parameters`, whose own lr_scale and
// weight_decay are not read.
std::vector<ParameterGroup> group_parameters(std::vector<GroupedParameter> parameters,
                                             const GroupingOptions& options);

// Whether a rule matches any of the names.
bool matches_any(const GroupRule& rule, const std::vector<GroupedParameter>& parameters);

// The parameters of each group that `is_first` accepts by name and whole sizes, and the others.
// Groups without members are left out.
std::pair<std::vector<ParameterGroup>, std::vector<ParameterGroup>> split_groups(
    std::vector<ParameterGroup> groups,
    const std::function<bool(const std::string&, const std::vector<int64_t>&)>& is_first);

}  // namespace narrowgauge::optim
