#include "quantization/scheme.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include "quantization/spec_json.h"

namespace narrowgauge::quantization {
namespace {

TEST(Scheme, EveryNameIsAConsistentScheme) {
  for (const std::string& name : scheme_names()) {
    const Scheme scheme = scheme_by_name(name);
    EXPECT_EQ(scheme.name, name);
    EXPECT_NO_THROW(check_spec(scheme.weight)) << name;
    if (scheme.activation) {
      EXPECT_NO_THROW(check_spec(*scheme.activation)) << name;
    }
  }
  EXPECT_EQ(scheme_by_name("8da4w"), scheme_by_name("int8-dynamic-act-int4-weight"));
}

TEST(Scheme, OptionsAreAppliedAndRefusedWhereTheyMeanNothing) {
  EXPECT_EQ(scheme_by_name("8da4w", {.group_size = 64}).weight.group_size, 64);
  const Scheme row = scheme_by_name("int4-weight-only", {.group_size = kWholeRow});
  EXPECT_EQ(row.weight.granularity, Granularity::kPerRow);
  const Scheme two_bits = scheme_by_name(
      "intx-weight-only", {.group_size = 32, .bits = 2, .mapping = MappingType::kAsymmetric});
  EXPECT_EQ(two_bits.weight.quant_max(), 1);
  EXPECT_EQ(two_bits.weight.zero_point_domain, ZeroPointDomain::kInt);
  EXPECT_EQ(
      scheme_by_name("float8-dynamic-act-float8-weight", {.granularity = Granularity::kPerTensor})
          .activation->granularity,
      Granularity::kPerTensor);
  EXPECT_THROW(scheme_by_name("gguf-q4_0", {.group_size = 64}), c10::Error);
  EXPECT_THROW(scheme_by_name("8da4w", {.bits = 3}), c10::Error);
  EXPECT_THROW(scheme_by_name("8da4w", {.group_size = 0}), c10::Error);
  EXPECT_THROW(scheme_by_name("intx-weight-only", {.bits = 9}), c10::Error);
  EXPECT_THROW(scheme_by_name("int5", {}), c10::Error);
}

TEST(SpecJson, RoundTripsEveryScheme) {
  for (const std::string& name : scheme_names()) {
    const Scheme scheme = scheme_by_name(name);
    const auto json = nlohmann::json::parse(to_json(scheme).dump());
    EXPECT_EQ(scheme_from_json(json, "test"), scheme) << json.dump();
  }
}

TEST(SpecJson, RefusesWhatItDoesNotKnow) {
  const auto good = nlohmann::json::parse(to_json(scheme_by_name("8da4w").weight).dump());
  for (const auto& [key, value] : good.items()) {
    auto bad = good;
    bad.erase(key);
    EXPECT_THROW(spec_from_json(bad, "test"), std::runtime_error) << key;
    bad[key] = "?";
    EXPECT_THROW(spec_from_json(bad, "test"), std::runtime_error) << key;
  }
  auto bad = good;
  bad["bits"] = 40;
  EXPECT_THROW(spec_from_json(bad, "test"), std::runtime_error);
  bad = good;
  bad["group_size"] = -3;
  EXPECT_THROW(spec_from_json(bad, "test"), std::runtime_error);
}

}  // namespace
}  // namespace narrowgauge::quantization
