#include "nn/swap_linear.h"

#include <string>

namespace narrowgauge::nn {
namespace {

int64_t swap_below(Layer& layer, const std::string& prefix, const LinearFilter& filter,
                   const LinearFactory& make) {
  int64_t num_swapped = 0;
  for (const auto& [name, child] : layer.child_layers()) {
    const std::string fqn = prefix + name;
    const auto linear = std::dynamic_pointer_cast<Linear>(child);
    if (linear && filter(*linear, fqn)) {
      layer.replace_child(name, make(*linear));
      ++num_swapped;
    } else {
      num_swapped += swap_below(*child, fqn + ".", filter, make);
    }
  }
  return num_swapped;
}

}  // namespace

int64_t swap_linear(Layer& root, const LinearFilter& filter, const LinearFactory& make) {
  return swap_below(root, "", filter, make);
}

}  // namespace narrowgauge::nn
