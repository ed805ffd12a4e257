#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

#include "nn/linear.h"

namespace narrowgauge::nn {

using LinearFilter = std::function<bool(const Linear& linear, std::string_view fqn)>;
using LinearFactory = std::function<std::shared_ptr<Linear>(const Linear& source)>;

// Replaces every Linear below `root` that `filter` accepts by make(linear), depth first in the
// order of registration. `root` itself is never replaced. Returns the number replaced.
int64_t swap_linear(Layer& root, const LinearFilter& filter, const LinearFactory& make);

}  // namespace narrowgauge::nn
