#include "bench/convergence_family.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "trainer/config_reader.h"

namespace narrowgauge::bench {
namespace {

using testing::ElementsAre;

TEST(ConvergenceFamily, EveryVariantIsAConfigurationOfItsOwn) {
  for (const ConvergenceFamily& family : convergence_families()) {
    std::set<std::string> folders;
    for (const ConvergenceVariant& variant : family.variants) {
      EXPECT_TRUE(folders.insert(folder_name(variant.name)).second) << variant.name;
      EXPECT_NO_THROW(trainer::read_config_text(
          "job: {run_dir: x}\ntokenizer: {kind: bytes}\ndata: {train: [a.txt]}\n"
          "model: {dim: 256, num_heads: 4, num_layers: 2, ffn_dim: 768}\n",
          "c.yaml", overrides_of(variant, 1500)))
          << family.name << ": " << variant.name;
    }
    EXPECT_GT(folders.size(), 2u);
    EXPECT_EQ(find_convergence_family(family.name), &family);
  }
  EXPECT_EQ(find_convergence_family("fp8"), nullptr);
}

TEST(ConvergenceFamily, SharesOfTheSteps) {
  EXPECT_THAT(overrides_of({"v", {"sparsity.end_step={0.7}", "a.b=c"}}, 1001),
              ElementsAre("sparsity.end_step=701", "a.b=c"));
  EXPECT_EQ(folder_name("70 % sparse, then dense"), "70_sparse_then_dense");
}

}  // namespace
}  // namespace narrowgauge::bench
