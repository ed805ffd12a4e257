#include "sparsity/packed_semi_sparse_linear.h"

#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <memory>
#include <tuple>

#include "nn/kernel_dispatch.h"
#include "sparsity/kernels/semi_structured_matvec.h"
#include "tests/support/numerics.h"

namespace narrowgauge::sparsity {
namespace {

using narrowgauge::testing::expect_bitwise_equal;
using narrowgauge::testing::expect_close;
using narrowgauge::testing::tolerance;

at::Tensor random_bf16(at::IntArrayRef sizes) { return at::randn(sizes).to(at::kBFloat16); }

// Two of four along the columns alone, as pruning after training leaves them, some groups with
// fewer, some rows empty.
at::Tensor sparse_weight(int64_t rows, int64_t cols) {
  const at::Tensor weight = at::randn({rows, cols}).view({-1, 4});
  const at::Tensor least = std::get<1>(weight.abs().topk(2, 1, /*largest=*/false));
  weight.scatter_(1, least, 0.0);
  weight.masked_fill_(at::randn({weight.size(0), 1}).gt(1.5), 0.0);
  at::Tensor matrix = weight.view({rows, cols}).to(at::kBFloat16);
  matrix[rows - 1].zero_();
  return matrix;
}

std::shared_ptr<nn::Linear> linear_of(const at::Tensor& weight, const at::Tensor& bias = {}) {
  auto linear =
      std::make_shared<nn::Linear>(nn::LinearSpec{weight.size(1), weight.size(0), bias.defined()},
                                   at::TensorOptions().device(at::kMeta).dtype(at::kBFloat16));
  linear->replace_parameter("weight", weight);
  if (bias.defined()) {
    linear->replace_parameter("bias", bias);
  }
  return linear;
}

// Against the product in fp64, within what fp32 sums and one rounding allow.
void expect_product(const at::Tensor& y, const at::Tensor& x, const at::Tensor& weight,
                    const at::Tensor& bias) {
  at::Tensor expected = at::mm(x.to(at::kDouble), weight.to(at::kDouble).t());
  at::Tensor magnitude = at::mm(x.abs().to(at::kDouble), weight.abs().to(at::kDouble).t());
  if (bias.defined()) {
    expected = expected.add(bias);
    magnitude = magnitude.add(bias.abs());
  }
  const double fp32_sum = tolerance(at::kFloat, weight.size(1));
  const at::Tensor error = y.to(at::kDouble).sub(expected).abs();
  const at::Tensor bound = expected.abs().mul(1.0 / 256).add(magnitude.mul(fp32_sum));
  EXPECT_TRUE(error.le(bound).all().item<bool>()) << error.sub(bound).max().item<double>();
}

class PackedLinearTest
    : public ::testing::TestWithParam<std::tuple<int64_t, int64_t, int64_t, bool>> {};

TEST_P(PackedLinearTest, ComputesTheDenseProduct) {
  const c10::NoGradGuard no_grad;
  const auto [tokens, rows, cols, has_bias] = GetParam();
  const at::Tensor weight = sparse_weight(rows, cols);
  const at::Tensor bias = has_bias ? random_bf16({rows}) : at::Tensor();
  PackedSemiSparseLinear packed(*linear_of(weight, bias));
  const at::Tensor x = random_bf16({tokens, cols});
  expect_product(packed(x), x, weight, bias);
}

// 8 and 40 columns are less and more than a vector, 1000 leaves a tail; 9 and more tokens are
// multiplied by unpacked strips.
INSTANTIATE_TEST_SUITE_P(Shapes, PackedLinearTest,
                         ::testing::Combine(::testing::Values(1, 2, 3, 4, 7, 8, 9, 33),
                                            ::testing::Values(4, 36),
                                            ::testing::Values(8, 24, 32, 40, 512, 1000),
                                            ::testing::Bool()));

TEST(PackedLinear, StripsCoverRowsThatTheyDoNotDivide) {
  const c10::NoGradGuard no_grad;
  const at::Tensor weight = sparse_weight(612, 1024);  // strips of 256 rows
  PackedSemiSparseLinear packed(*linear_of(weight));
  const at::Tensor x = random_bf16({16, 1024});
  expect_product(packed(x), x, weight, {});
}

TEST(PackedLinear, KeepsTheSizesOfItsInput) {
  const c10::NoGradGuard no_grad;
  PackedSemiSparseLinear packed(*linear_of(sparse_weight(12, 16)));
  EXPECT_EQ(packed(random_bf16({16})).sizes(), at::IntArrayRef({12}));
  EXPECT_EQ(packed(random_bf16({1, 1, 16})).sizes(), at::IntArrayRef({1, 1, 12}));
  EXPECT_EQ(packed(random_bf16({2, 11, 16})).sizes(), at::IntArrayRef({2, 11, 12}));
  EXPECT_EQ(packed(random_bf16({2, 0, 16})).sizes(), at::IntArrayRef({2, 0, 12}));
  const at::Tensor wide = random_bf16({16, 24}).t();  // no two elements of a row are neighbours
  expect_bitwise_equal(packed(wide.narrow(0, 0, 5).t().contiguous().t().narrow(1, 0, 16)),
                       packed(wide.narrow(0, 0, 5).narrow(1, 0, 16).contiguous()));
  EXPECT_THROW(packed(random_bf16({1, 12})), c10::Error);
  EXPECT_THROW(packed(at::randn({1, 16})), c10::Error);
}

// The processor that runs the test takes one of them: the others are called by name.
TEST(Matvec, EveryWayOfComputingItAgrees) {
  for (const int64_t cols : {8, 40, 512, 1000}) {
    for (const int64_t tokens : {1, 2, 3, 4, 6}) {
      const at::Tensor weight = sparse_weight(9 * 4, cols);
      const at::Tensor bias = random_bf16({36});
      const at::Tensor x = random_bf16({tokens, cols});
      const SemiStructuredTensor packed = compress(weight, pack_mask(weight.ne(0)));
      const kernels::SemiStructuredRows rows{nn::const_pointer<uint16_t>(packed.values),
                                             nn::const_pointer<uint8_t>(packed.metadata), 33, cols};
      const auto run = [&](auto kernel) {
        const at::Tensor y = random_bf16({tokens, 36});
        kernel(rows, nn::const_pointer<uint16_t>(x), tokens, nn::const_pointer<uint16_t>(bias),
               nn::mutable_pointer<uint16_t>(y), 36);
        expect_product(y.narrow(1, 0, 33), x, weight.narrow(0, 0, 33), bias.narrow(0, 0, 33));
      };
      run(kernels::semi_structured_matvec);
      run(kernels::semi_structured_matvec_portable);
#if defined(__x86_64__)
      if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        run(kernels::semi_structured_matvec_avx2);
      }
#endif
    }
  }
}

TEST(IsSemiStructured, LooksAtEveryGroupOfFour) {
  at::Tensor weight = sparse_weight(200, 64);
  EXPECT_TRUE(is_semi_structured(weight));
  EXPECT_FALSE(is_semi_structured(weight.to(at::kFloat)));
  EXPECT_FALSE(is_semi_structured(weight.narrow(0, 0, 198)));
  weight[199].narrow(0, 60, 3).fill_(1.0);
  EXPECT_FALSE(is_semi_structured(weight));
  EXPECT_THROW(PackedSemiSparseLinear{*linear_of(weight)}, c10::Error);
}

struct TwoLinears : nn::Layer {
  TwoLinears() {
    add_child("dense", dense, linear_of(random_bf16({8, 16})));
    add_child("sparse", sparse, linear_of(sparse_weight(8, 16)));
  }
  std::shared_ptr<nn::Linear> dense;
  std::shared_ptr<nn::Linear> sparse;
};

TEST(PackSemiStructuredLinears, TakesThoseThatAre) {
  const c10::NoGradGuard no_grad;
  TwoLinears model;
  const at::Tensor x = random_bf16({1, 16});
  const at::Tensor dense = (*model.dense)(x);
  const at::Tensor weight = model.sparse->weight;
  EXPECT_EQ(pack_semi_structured_linears(model), 1);
  expect_bitwise_equal((*model.dense)(x), dense);
  EXPECT_NE(std::dynamic_pointer_cast<PackedSemiSparseLinear>(model.sparse), nullptr);
  EXPECT_TRUE(model.sparse->weight.is_meta());
  expect_product((*model.sparse)(x), x, weight, {});
  EXPECT_EQ(pack_semi_structured_linears(model), 0);
}

}  // namespace
}  // namespace narrowgauge::sparsity
