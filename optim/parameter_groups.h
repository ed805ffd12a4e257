#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <utility>
#include <vector>

#include "optim/optimizer.h"

namespace narrowgauge::optim {

// Whether weight decay applies by default: matrices decay; norm weights and biases (fewer than two
// dims) and embedding tables (a component of the name begins with "embed", or is "wte") do not. A
// head tied to the embedding is the embedding.
bool decays_by_default(const std::string& name, const at::Tensor& param);

// The parameters that require a gradient in two groups, decayed and not, by decays_by_default; a
// group without members is left out. Order within a group is that of `named_params`.
std::vector<ParameterGroup> default_parameter_groups(
    const std::vector<std::pair<std::string, at::Tensor>>& named_params, double weight_decay);

}  // namespace narrowgauge::optim
