#include "nn/layer.h"

#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>

#include "nn/linear.h"

namespace narrowgauge::nn {
namespace {

struct TwiceLinear : Linear {
  explicit TwiceLinear(const Linear& source) : Linear(source) {}
  at::Tensor forward(const at::Tensor& x) override { return Linear::forward(x).mul(2); }
};

struct Parent : Layer {
  std::shared_ptr<Linear> projection;
  Parent() {
    add_child("projection", projection, std::make_shared<Linear>(LinearSpec{3, 4}, at::kMeta));
  }
};

TEST(Layer, ReplacedParameterReachesMemberAndRegistry) {
  Linear linear({3, 4}, at::TensorOptions(at::kMeta));
  EXPECT_TRUE(linear.weight.is_meta());
  linear.replace_parameter("weight", at::ones({4, 3}));
  EXPECT_FALSE(linear.weight.is_meta());
  EXPECT_TRUE(linear.named_parameters()["weight"].is_same(linear.weight));
  EXPECT_THROW(linear.replace_parameter("wieght", at::ones({4, 3})), c10::Error);
}

TEST(Layer, ReplacedChildKeepsParameterAndChangesForward) {
  Parent parent;
  parent.projection->replace_parameter("weight", at::ones({4, 3}));
  parent.replace_child("projection", std::make_shared<TwiceLinear>(*parent.projection));
  EXPECT_EQ((*parent.projection)(at::ones({1, 3})).sum().item<float>(), 24.0F);
  EXPECT_TRUE(parent.named_parameters()["projection.weight"].is_same(parent.projection->weight));
  EXPECT_THROW(parent.replace_child("projection", std::make_shared<Parent>()), c10::Error);
}

TEST(Layer, HooksRunAroundForwardInOrder) {
  Linear linear({1, 1}, at::TensorOptions());
  linear.replace_parameter("weight", at::ones({1, 1}));
  linear.register_forward_pre_hook([](at::Tensor x) { return x.add(1); });
  linear.register_forward_pre_hook([](at::Tensor x) { return x.mul(10); });
  linear.register_forward_hook([](at::Tensor y) { return y.sub(5); });
  EXPECT_EQ(linear(at::full({1, 1}, 2.0)).item<float>(), 25.0F);
}

}  // namespace
}  // namespace narrowgauge::nn
