#include "bench/convergence_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace narrowgauge::bench {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

TEST(FinalLoss, IsTheMeanOfTheLastTenth) {
  EXPECT_EQ(final_loss({{80, 9.0}, {90, 5.0}, {95, 2.0}, {100, 1.0}}, 100), 1.5);
  EXPECT_EQ(final_loss({{90, 5.0}}, 100), std::nullopt);
  EXPECT_EQ(final_loss({}, 100), std::nullopt);
}

const std::vector<VariantCurves> kVariants = {
    {"bf16", {{{10, 2.0}}, {{10, 2.2}}}, true},  {"same", {{{10, 2.1}}, {{10, 2.1}}}, true},
    {"worse", {{{10, 2.3}}, {{10, 2.3}}}, true}, {"shown", {{{10, 4.2}}, {{10, 4.2}}}, false},
    {"half", {{{10, 2.0}}, {}}, true},           {"none", {{}, {}}, true}};

TEST(ConvergenceRows, MeanSpreadAndDifference) {
  const auto rows = convergence_rows(kVariants, "bf16", 10, 1.0);
  EXPECT_DOUBLE_EQ(rows[0].mean, 2.1);
  EXPECT_NEAR(rows[0].spread, 0.1414213562, 1e-9);
  EXPECT_EQ(rows[0].difference_percent, std::nullopt);
  EXPECT_NEAR(*rows[1].difference_percent, 0, 1e-9);
  EXPECT_FALSE(rows[1].is_beyond);
  EXPECT_NEAR(*rows[2].difference_percent, 100 * 0.2 / 2.1, 1e-9);
  EXPECT_TRUE(rows[2].is_beyond);
  EXPECT_NEAR(*rows[3].difference_percent, 100, 1e-9);
  EXPECT_FALSE(rows[3].is_beyond);
  EXPECT_EQ(rows[4].difference_percent, std::nullopt);  // one seed beside two
  EXPECT_TRUE(rows[5].losses.empty());
  EXPECT_FALSE(convergence_rows(kVariants, "gone", 10, 1.0)[2].difference_percent.has_value());
}

TEST(ConvergenceRows, AsTextAndJson) {
  const auto rows = convergence_rows(kVariants, "bf16", 10, 1.0);
  const std::string text = to_text(rows, "bf16");
  EXPECT_THAT(text, HasSubstr("| against bf16 |\n|---|---|---|---|---|\n"));
  EXPECT_THAT(text, HasSubstr("| bf16 | 2.0000 2.2000 | 2.1000 | 0.1414 (6.734 %) | |\n"));
  EXPECT_THAT(text,
              HasSubstr("| worse | 2.3000 2.3000 | 2.3000 | 0.0000 (0.000 %) | +9.524 % |\n"));
  EXPECT_THAT(text, HasSubstr("| half | 2.0000 | 2.0000 | | |\n| none | none | | | |\n"));
  const auto json = nlohmann::json::parse(to_json(rows, "float8", "bf16", 10));
  EXPECT_EQ(json["reference"], "bf16");
  EXPECT_EQ(json["variants"][2]["beyond_tolerance"], true);
  EXPECT_TRUE(json["variants"][4]["spread"].is_null());
  EXPECT_TRUE(json["variants"][5]["losses"].empty());
}

TEST(Difference, IsOfMeansWhereAllRunsHaveTheStep) {
  const VariantCurves reference = {"r", {{{1, 2.0}, {2, 1.0}}, {{1, 4.0}, {2, 1.0}}}, true};
  const VariantCurves variant = {"v", {{{1, 3.5}, {2, 1.0}, {3, 1.0}}, {{1, 3.5}, {3, 1.0}}}, true};
  EXPECT_THAT(difference(variant, reference), ElementsAre(Pair(1, 0.5)));
  EXPECT_THAT(difference({"none", {}, true}, reference), ElementsAre());
}

}  // namespace
}  // namespace narrowgauge::bench
