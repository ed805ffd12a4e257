#include "optim/parameter_groups.h"

#include <ATen/ops/ones.h>
#include <gtest/gtest.h>

namespace narrowgauge::optim {
namespace {

at::Tensor matrix() { return at::ones({2, 3}).requires_grad_(); }
at::Tensor vector() { return at::ones({3}).requires_grad_(); }

TEST(ParameterGroups, MatricesDecayAndNormsBiasesAndEmbeddingsDoNot) {
  EXPECT_TRUE(decays_by_default("model.layers.0.self_attn.qkv_proj.weight", matrix()));
  EXPECT_TRUE(decays_by_default("lm_head.weight", matrix()));
  EXPECT_TRUE(decays_by_default("layers.0.reembedding_free.weight", matrix()));
  EXPECT_FALSE(decays_by_default("model.embed_tokens.weight", matrix()));
  EXPECT_FALSE(decays_by_default("embed_tokens.weight", matrix()));
  EXPECT_FALSE(decays_by_default("transformer.wte.weight", matrix()));
  EXPECT_FALSE(decays_by_default("model.norm.weight", vector()));
  EXPECT_FALSE(decays_by_default("layers.0.qkv_proj.bias", vector()));
}

TEST(ParameterGroups, SplitKeepsOrderAndDropsFrozenParameters) {
  const auto groups = default_parameter_groups({{"embed_tokens.weight", matrix()},
                                                {"a.weight", matrix()},
                                                {"norm.weight", vector()},
                                                {"frozen.weight", at::ones({2, 2})},
                                                {"b.weight", matrix()}},
                                               0.1);
  ASSERT_EQ(groups.size(), 2U);
  EXPECT_EQ(groups[0].names, (std::vector<std::string>{"a.weight", "b.weight"}));
  EXPECT_EQ(groups[0].weight_decay, 0.1);
  EXPECT_EQ(groups[1].names, (std::vector<std::string>{"embed_tokens.weight", "norm.weight"}));
  EXPECT_EQ(groups[1].weight_decay, 0.0);
}

TEST(ParameterGroups, GroupWithoutMembersIsLeftOut) {
  EXPECT_EQ(default_parameter_groups({{"norm.weight", vector()}}, 0.1).size(), 1U);
  EXPECT_TRUE(default_parameter_groups({}, 0.1).empty());
}

}  // namespace
}  // namespace narrowgauge::optim
