#include "comm/max_keys.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace narrowgauge::comm {
namespace {

at::Tensor edge_values(at::ScalarType dtype) {
  const double tiny = std::numeric_limits<float>::denorm_min();
  return at::tensor({-INFINITY, -3.0e38, -2.0, -1.0, -tiny, 0.0, tiny, 1.0, 2.0, 3.0e38, INFINITY},
                    at::kDouble)
      .to(dtype);
}

TEST(MaxKeys, AreInTheOrderOfTheFloats) {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat}) {
    const at::Tensor keys = max_keys(edge_values(dtype));
    EXPECT_EQ(keys.scalar_type(), dtype == at::kDouble ? at::kLong : at::kInt);
    EXPECT_TRUE(keys.slice(0, 1).gt(keys.slice(0, 0, -1)).all().item<bool>()) << keys;
  }
}

TEST(MaxKeys, ComeBackBitForBit) {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor values = edge_values(dtype);
    EXPECT_TRUE(from_max_keys(max_keys(values), dtype).equal(values)) << dtype;
    const at::Tensor zeros = at::tensor({0.0, -0.0}, at::kDouble).to(dtype);
    const at::Tensor signs = from_max_keys(max_keys(zeros), dtype).signbit();
    EXPECT_FALSE(signs[0].item<bool>());
    EXPECT_TRUE(signs[1].item<bool>());
    EXPECT_EQ(max_keys(at::empty({0, 3}, dtype)).sizes(), at::IntArrayRef({0, 3}));
  }
}

TEST(MaxKeys, TheirMaximumIsTorchsNanIncluded) {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor a = at::randn({1000}, at::kDouble).to(dtype);
    const at::Tensor b = at::randn({1000}, at::kDouble).to(dtype);
    a[3].fill_(NAN);
    b[4].fill_(-NAN);
    b[3].fill_(INFINITY);
    const at::Tensor maximum =
        from_max_keys(at::maximum(max_keys(a), max_keys(b)), dtype).to(at::kDouble);
    const at::Tensor expected = at::maximum(a, b).to(at::kDouble);
    EXPECT_TRUE(maximum.isnan().equal(expected.isnan())) << dtype;
    EXPECT_TRUE(maximum.nan_to_num(0).equal(expected.nan_to_num(0))) << dtype;
    EXPECT_TRUE(maximum[3].isnan().item<bool>() && maximum[4].isnan().item<bool>());
  }
}

TEST(MaxKeys, RefuseIntegers) { EXPECT_THROW(max_keys(at::zeros({1}, at::kInt)), c10::Error); }

}  // namespace
}  // namespace narrowgauge::comm
