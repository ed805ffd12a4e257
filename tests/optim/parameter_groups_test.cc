#include "optim/parameter_groups.h"

#include <ATen/ops/ones.h>
#include <gtest/gtest.h>

#include <stdexcept>

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

std::vector<GroupedParameter> parameters() {
  return {{"embed_tokens.weight", matrix(), {{2, 3}, 0}},
          {"layers.0.a.weight", matrix(), {{4, 3}, 2}},
          {"norm.weight", vector(), {{3}, 0}},
          {"frozen.weight", at::ones({2, 2}), {{2, 2}, 0}},
          {"layers.1.b.weight", matrix(), {{2, 3}, 0}}};
}

using Names = std::vector<std::string>;

TEST(ParameterGroups, SplitKeepsOrderAndDropsFrozenParameters) {
  const auto groups = group_parameters(parameters(), {.weight_decay = 0.1});
  ASSERT_EQ(groups.size(), 2U);
  EXPECT_EQ(groups[0].names, (Names{"embed_tokens.weight", "norm.weight"}));
  EXPECT_EQ(groups[0].weight_decay, 0.0);
  EXPECT_EQ(groups[1].names, (Names{"layers.0.a.weight", "layers.1.b.weight"}));
  EXPECT_EQ(groups[1].weight_decay, 0.1);
  EXPECT_EQ(groups[1].shards[0].global_sizes, (std::vector<int64_t>{4, 3}));
  EXPECT_EQ(groups[1].shards[0].row_begin, 2);
  EXPECT_TRUE(group_parameters({}, {.weight_decay = 0.1}).empty());
}

TEST(ParameterGroups, AllDecayWhenAsked) {
  const auto groups =
      group_parameters(parameters(), {.weight_decay = 0.1, .decay_norms_and_embeddings = true});
  ASSERT_EQ(groups.size(), 1U);
  EXPECT_EQ(groups[0].names.size(), 4U);
  EXPECT_EQ(groups[0].weight_decay, 0.1);
}

TEST(ParameterGroups, FirstRuleThatMatchesDecides) {
  const GroupingOptions options = {
      .weight_decay = 0.1,
      .rules = {parse_group_rule("layers.0.* lr_scale=0.5"),
                parse_group_rule("layers.* lr_scale=2 weight_decay=0.3"),
                parse_group_rule("norm.weight weight_decay=0.2")}};
  const auto groups = group_parameters(parameters(), options);
  ASSERT_EQ(groups.size(), 4U);
  EXPECT_EQ(groups[0].names, Names{"embed_tokens.weight"});
  EXPECT_EQ(groups[1].names, Names{"layers.0.a.weight"});
  EXPECT_EQ(groups[1].lr_scale, 0.5);
  EXPECT_EQ(groups[1].weight_decay, 0.1);
  EXPECT_EQ(groups[2].names, Names{"norm.weight"});
  EXPECT_EQ(groups[2].weight_decay, 0.2);
  EXPECT_EQ(groups[3].names, Names{"layers.1.b.weight"});
  EXPECT_EQ(groups[3].lr_scale, 2.0);
  EXPECT_EQ(groups[3].weight_decay, 0.3);
}

TEST(ParameterGroups, RuleMatchesSomeParameterOrNone) {
  EXPECT_TRUE(matches_any(parse_group_rule("*.a.* frozen"), parameters()));
  EXPECT_FALSE(matches_any(parse_group_rule("layer.* frozen"), parameters()));
}

TEST(ParameterGroups, SplitsByNameAndWholeSizes) {
  const auto [first, second] =
      split_groups(group_parameters(parameters(), {.weight_decay = 0.1}),
                   [](const std::string& name, const std::vector<int64_t>& sizes) {
                     return sizes[0] == 4 || name == "norm.weight";
                   });
  ASSERT_EQ(first.size(), 2U);
  ASSERT_EQ(second.size(), 2U);
  EXPECT_EQ(first[0].names, Names{"norm.weight"});
  EXPECT_EQ(first[1].names, Names{"layers.0.a.weight"});
  EXPECT_EQ(first[1].weight_decay, 0.1);
  EXPECT_EQ(second[0].names, Names{"embed_tokens.weight"});
  EXPECT_EQ(second[1].names, Names{"layers.1.b.weight"});
}

TEST(GroupRule, Parses) {
  const GroupRule rule = parse_group_rule("  *.weight  weight_decay=0 lr_scale=1.5e-1 ");
  EXPECT_EQ(rule.pattern, "*.weight");
  EXPECT_EQ(rule.lr_scale, 0.15);
  EXPECT_EQ(rule.weight_decay, 0.0);
  EXPECT_FALSE(rule.frozen);
  EXPECT_TRUE(parse_group_rule("a frozen").frozen);
  EXPECT_EQ(parse_group_rule("a lr_scale=2").weight_decay, std::nullopt);
  for (const char* wrong :
       {"", "a", "a lr_scale", "a lr_scale=", "a lr_scale=x", "a lr_scale=-1", "a lr_scale=-0",
        "a lr_scale=inf", "a lr_scale=nan", "a lr_scale=1 lr_scale=2", "a frozen=1",
        "a frozen lr_scale=1", "a decay=1", "a lr_scale=1x"}) {
    EXPECT_THROW(parse_group_rule(wrong), std::invalid_argument) << wrong;
  }
}

TEST(GroupRule, PatternsMatchWholeNames) {
  EXPECT_TRUE(matches("*", ""));
  EXPECT_TRUE(matches("*", "a.b"));
  EXPECT_TRUE(matches("a.*.weight", "a.b.c.weight"));
  EXPECT_TRUE(matches("*a*b*", "xxaxxbab"));
  EXPECT_TRUE(matches("layers.?.w", "layers.3.w"));
  EXPECT_TRUE(matches("*norm*", "layers.1.input_layernorm.weight"));
  EXPECT_FALSE(matches("layers.?.w", "layers.13.w"));
  EXPECT_FALSE(matches("a", "ab"));
  EXPECT_FALSE(matches("b", "ab"));
  EXPECT_FALSE(matches("", "a"));
  EXPECT_FALSE(matches("a*c", "abcd"));
  EXPECT_FALSE(matches(std::string(40, '*') + "b", std::string(5000, 'a')));
}

}  // namespace
}  // namespace narrowgauge::optim
