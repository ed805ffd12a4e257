#include "float8/select_linears.h"

#include <gtest/gtest.h>

#include <map>

#include "float8/convert.h"
#include "float8/float8_linear.h"
#include "nn/linear.h"
#include "nn/swap_linear.h"

namespace narrowgauge::float8 {
namespace {

class Pair : public nn::Layer {
 public:
  Pair(int64_t in, int64_t hidden, bool tied = false) {
    add_child("up", up, std::make_shared<nn::Linear>(nn::LinearSpec{in, hidden, true}, at::kMeta));
    add_child("down", down,
              std::make_shared<nn::Linear>(nn::LinearSpec{hidden, in, false}, at::kMeta));
    if (tied) {
      add_child("head", head,
                std::make_shared<nn::Linear>(nn::LinearSpec{in, hidden, false}, at::kMeta));
      head->replace_parameter("weight", up->weight);
    }
  }
  std::shared_ptr<nn::Linear> up, down, head;
};

class Model : public nn::Layer {
 public:
  Model() {
    add_child("0", first, std::make_shared<Pair>(32, 64));
    add_child("1", second, std::make_shared<Pair>(32, 64));
    add_child("lm_head", lm_head,
              std::make_shared<nn::Linear>(nn::LinearSpec{32, 48, false}, at::kMeta));
    add_child("odd", odd, std::make_shared<nn::Linear>(nn::LinearSpec{41, 128, false}, at::kMeta));
  }
  std::shared_ptr<Pair> first, second;
  std::shared_ptr<nn::Linear> lm_head, odd;
};

std::map<std::string, std::string> reasons(nn::Layer& model, const Float8LinearConfig& config,
                                           const std::vector<std::string>& filter_fqns) {
  std::map<std::string, std::string> reasons;
  for (const LinearDecision& decision : select_linears(model, config, filter_fqns)) {
    EXPECT_EQ(decision.converted, decision.reason.empty());
    reasons[decision.fqn] = decision.reason;
  }
  return reasons;
}

const Float8LinearConfig kTensorwise = Float8LinearConfig::from_recipe_name("tensorwise");
const Float8LinearConfig kRowwise = Float8LinearConfig::from_recipe_name("rowwise");

TEST(SelectLinears, NamesGlobsAndSizesDecide) {
  Model model;
  auto found = reasons(model, kTensorwise, {"lm_head", "0.*"});
  EXPECT_EQ(found["0.up"], "filter_fqns has 0.*");
  EXPECT_EQ(found["0.down"], "filter_fqns has 0.*");
  EXPECT_EQ(found["1.up"], "");
  EXPECT_EQ(found["1.down"], "");
  EXPECT_EQ(found["lm_head"], "filter_fqns has lm_head");
  EXPECT_EQ(found["odd"], "not a multiple of 16; pad_inner_dim would pad it");

  found = reasons(model, kTensorwise, {"up"});  // a part of the name, as in torchtitan
  EXPECT_EQ(found["0.up"], "filter_fqns has up");
  EXPECT_EQ(found["0.down"], "");

  Float8LinearConfig padded = kTensorwise;
  padded.pad_inner_dim = true;
  EXPECT_EQ(reasons(model, padded, {})["odd"], "");
}

TEST(SelectLinears, TiedWeightsStay) {
  class Tied : public nn::Layer {
   public:
    Tied() { add_child("pair", pair, std::make_shared<Pair>(32, 64, true)); }
    std::shared_ptr<Pair> pair;
  } model;
  auto found = reasons(model, kTensorwise, {});
  EXPECT_EQ(found["pair.up"], "its weight is tied to another layer");
  EXPECT_EQ(found["pair.head"], "its weight is tied to another layer");
  EXPECT_EQ(found["pair.down"], "");
}

// torchao's test_auto_filter, by (in, out).
TEST(SelectLinears, AutoFilterIsTorchaos) {
  EXPECT_FALSE(is_too_small(kTensorwise, 8192, 2048));
  EXPECT_TRUE(is_too_small(kTensorwise, 4096, 1024));
  EXPECT_FALSE(is_too_small(kRowwise, 4096, 8192));
  EXPECT_TRUE(is_too_small(kRowwise, 2048, 4096));
  EXPECT_TRUE(is_too_small(kRowwise, 8192, 2048));
  EXPECT_TRUE(is_too_small(kRowwise, 1024, 8192));
  Model model;
  EXPECT_EQ(reasons(model, kTensorwise, {kAutoFilter})["0.up"],
            "auto_filter_small_kn: too small to gain");
}

TEST(SelectLinears, DescriptionHasALineForEachKind) {
  Model model;
  const auto lines = describe(select_linears(model, kTensorwise, {"lm_head"}));
  EXPECT_EQ(lines, (std::vector<std::string>{
                       "*.up  32 -> 64  x 2  float8", "*.down  64 -> 32  x 2  float8",
                       "lm_head  32 -> 48  x 1  as it was (filter_fqns has lm_head)",
                       "odd  41 -> 128  x 1  as it was (not a multiple of 16; pad_inner_dim would "
                       "pad it)"}));
}

// torchao's test_swap_*: the parameters stay, the root is not replaced, twice changes nothing, and
// the way back ends where it began.
TEST(Convert, ThereAndBack) {
  Model model;
  const at::Tensor weight = model.first->up->weight;
  EXPECT_EQ(convert_to_float8_training(model, kTensorwise,
                                       select_linears(model, kTensorwise, {"lm_head"})),
            4);
  EXPECT_NE(std::dynamic_pointer_cast<Float8Linear>(model.first->up), nullptr);
  EXPECT_EQ(std::dynamic_pointer_cast<Float8Linear>(model.lm_head), nullptr);
  EXPECT_TRUE(model.first->up->weight.is_same(weight));
  EXPECT_TRUE(model.first->up->bias.defined());
  EXPECT_EQ(convert_to_float8_training(model, kTensorwise), 2);  // what was left
  EXPECT_EQ(convert_to_float8_training(model, kTensorwise), 0);
  EXPECT_EQ(convert_to_linear(model), 6);
  EXPECT_EQ(std::dynamic_pointer_cast<Float8Linear>(model.first->up), nullptr);
  EXPECT_TRUE(model.first->up->weight.is_same(weight));

  nn::Linear root(nn::LinearSpec{32, 32}, at::kMeta);
  EXPECT_EQ(convert_to_float8_training(root, kTensorwise), 0);
}

}  // namespace
}  // namespace narrowgauge::float8
