// Kernels of nn/ on a GPU beside the same formulas in fp64 on the CPU, with the bounds that the
// CPU's kernels are held to (tests/nn). Shapes reach every path: vectors held in registers, longer
// rows, rows that are not a multiple of 16 bytes.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <limits>
#include <tuple>

#include "cuda/launch_scope.h"
#include "nn/cross_entropy.h"
#include "nn/dropout.h"
#include "nn/kernel_dispatch.h"
#include "nn/kernels/swiglu_cuda.h"
#include "nn/known_amax.h"
#include "nn/rms_norm.h"
#include "nn/rotary_embedding.h"
#include "nn/swiglu.h"
#include "tests/support/numerics.h"

namespace narrowgauge::nn {
namespace {

using narrowgauge::testing::expect_bitwise_equal;
using narrowgauge::testing::expect_close;
using narrowgauge::testing::tolerance;

constexpr double kEps = 1e-5;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// A leaf on the GPU, and the same values in fp64 on the CPU.
struct Leaf {
  explicit Leaf(const at::Tensor& values)
      : gpu(values.detach().to(at::kCUDA).requires_grad_()),
        wide(values.detach().to(at::kCPU, at::kDouble).requires_grad_()) {}
  Leaf(at::IntArrayRef sizes, at::ScalarType dtype) : Leaf(at::randn(sizes).to(dtype)) {}

  at::Tensor gpu;
  at::Tensor wide;
};

// Sum of the absolute values of the two terms of the norm's gradient, which cancel when dim is
// small.
at::Tensor grad_x_terms(const at::Tensor& x64, const at::Tensor& weight64,
                        const at::Tensor& grad_y) {
  const at::Tensor x = x64.detach();
  const at::Tensor direct = grad_y.to(at::kDouble).mul(weight64.detach()).abs();
  const at::Tensor rstd = x.square().mean(-1, true).add(kEps).rsqrt();
  const at::Tensor through_rstd =
      x.abs().mul(direct.mul(x.abs()).mean(-1, true)).mul(rstd.square());
  return direct.add(through_rstd).mul(rstd);
}

using Shape = std::tuple<at::ScalarType, int64_t, int64_t>;
class RmsNormOnGpu : public ::testing::TestWithParam<Shape> {};

TEST_P(RmsNormOnGpu, MatchesFp64ForwardAndBackward) {
  const auto [dtype, rows, dim] = GetParam();
  const Leaf x({rows, dim}, dtype);
  const Leaf weight({dim}, dtype);
  const at::Tensor grad_y = at::randn({rows, dim}).to(dtype);
  const at::Tensor y = rms_norm(x.gpu, weight.gpu, kEps);
  y.backward(grad_y.to(at::kCUDA));
  const at::Tensor y64 = rms_norm_reference(x.wide, weight.wide, kEps);
  y64.backward(grad_y.to(at::kDouble));
  EXPECT_TRUE(y.is_cuda());
  EXPECT_EQ(y.scalar_type(), dtype);
  expect_close(y, y64, tolerance(dtype, dim));
  expect_close(x.gpu.grad(), x.wide.grad(), tolerance(dtype, 2 * dim),
               grad_x_terms(x.wide, weight.wide, grad_y));
  expect_close(weight.gpu.grad(), weight.wide.grad(), tolerance(dtype, rows + dim));
}

TEST_P(RmsNormOnGpu, AddThenNormEqualsTheTwoSteps) {
  const auto [dtype, rows, dim] = GetParam();
  const Leaf residual({rows, dim}, dtype);
  const Leaf x({rows, dim}, dtype);
  const Leaf weight({dim}, at::kFloat);
  const at::Tensor grad_h = at::randn({rows, dim}).to(dtype);
  const at::Tensor grad_y = at::randn({rows, dim}).to(dtype);
  const auto [h, y] = add_rms_norm(residual.gpu, x.gpu, weight.gpu, kEps);
  h.mul(grad_h.cuda())
      .to(at::kFloat)
      .sum()
      .add(y.mul(grad_y.cuda()).to(at::kFloat).sum())
      .backward();
  const at::Tensor h_expected = residual.gpu.detach().add(x.gpu.detach());
  expect_bitwise_equal(h, h_expected);
  expect_bitwise_equal(y, rms_norm(h_expected, weight.gpu.detach(), kEps));
  const Leaf wide_h(h_expected);
  const at::Tensor y64 = rms_norm_reference(wide_h.wide, weight.wide, kEps);
  wide_h.wide.mul(grad_h).sum().add(y64.mul(grad_y).sum()).backward();
  expect_close(residual.gpu.grad(), wide_h.wide.grad(), tolerance(dtype, 2 * dim),
               grad_x_terms(wide_h.wide, weight.wide, grad_y).add(grad_h.abs()));
  expect_bitwise_equal(x.gpu.grad(), residual.gpu.grad());
  expect_close(weight.gpu.grad(), weight.wide.grad(), tolerance(at::kFloat, rows + dim));
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, RmsNormOnGpu,
    ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16), ::testing::Values(1, 3, 700),
                       ::testing::Values(1, 8, 128, 217, 384, 768, 4096, 5003)));
INSTANTIATE_TEST_SUITE_P(LongRows, RmsNormOnGpu,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16),
                                            ::testing::Values(3),
                                            ::testing::Values(8192, 16384, 40000)));

TEST(RmsNormOnGpu, EdgesAreThoseOfTheCpu) {
  const at::Tensor x = at::randn({4, 384});
  x[0][7] = kNan;
  x[1][383] = kInfinity;
  x[2].zero_();
  const at::Tensor y = rms_norm(x.cuda(), at::ones({384}).cuda(), kEps).cpu();
  EXPECT_TRUE(y[0].isnan().all().item<bool>());
  EXPECT_TRUE(y[1][383].isnan().item<bool>());
  expect_bitwise_equal(y[2], at::zeros({384}));
  EXPECT_TRUE(y[3].isfinite().all().item<bool>());
  const Leaf weight({16}, at::kFloat);
  rms_norm(at::empty({0, 16}, at::kCUDA), weight.gpu, kEps).sum().backward();
  expect_bitwise_equal(weight.gpu.grad(), at::zeros({16}));
}

TEST(RmsNormOnGpu, UnalignedAndStridedInputsEqualTheirCopies) {
  const at::Tensor base = at::randn({3, 2, 129}, at::kCUDA).to(at::kBFloat16);
  const at::Tensor weight = at::randn({128}, at::kCUDA);
  for (const at::Tensor& x : {base.narrow(2, 1, 128), base.narrow(2, 0, 128).transpose(0, 1),
                              base.flatten().narrow(0, 1, 768).view({6, 128})}) {
    expect_bitwise_equal(rms_norm(x, weight, kEps), rms_norm(x.clone().contiguous(), weight, kEps));
  }
}

TEST(RmsNormOnGpu, BitsAreTheSameEachTime) {
  const at::Tensor x = at::randn({3000, 768}, at::kCUDA).to(at::kBFloat16);
  const at::Tensor grad = at::randn({3000, 768}, at::kCUDA).to(at::kBFloat16);
  at::Tensor first;
  for (int i = 0; i < 5; ++i) {
    const at::Tensor weight = at::ones({768}, at::kCUDA).requires_grad_();
    rms_norm(x, weight, kEps).backward(grad);
    first = first.defined() ? first : weight.grad();
    expect_bitwise_equal(weight.grad(), first);
  }
}

class SwigluOnGpu : public ::testing::TestWithParam<Shape> {};

TEST_P(SwigluOnGpu, MatchesFp64ForwardAndBackward) {
  const auto [dtype, rows, ffn] = GetParam();
  const Leaf gate_up(at::randn({rows, 2 * ffn}).mul(3).to(dtype));
  const at::Tensor grad = at::randn({rows, ffn}).to(dtype);
  const at::Tensor out = swiglu(gate_up.gpu);
  out.backward(grad.to(at::kCUDA));
  const at::Tensor out64 = swiglu_reference(gate_up.wide);
  out64.backward(grad.to(at::kDouble));
  EXPECT_EQ(out.scalar_type(), dtype);
  expect_close(out, out64, tolerance(dtype, 16));
  expect_close(gate_up.gpu.grad(), gate_up.wide.grad(), tolerance(dtype, 16));
}

INSTANTIATE_TEST_SUITE_P(Shapes, SwigluOnGpu,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16),
                                            ::testing::Values(1, 3, 700),
                                            ::testing::Values(1, 8, 217, 1024, 5003)));
INSTANTIATE_TEST_SUITE_P(ManyRows, SwigluOnGpu, ::testing::Values(Shape{at::kBFloat16, 70000, 8}));

TEST(SwigluOnGpu, ExtremesHaveTheLimitsOfTheFormula) {
  const at::Tensor gate_up = at::ones({1, 16}, at::kFloat);
  const float values[] = {-200, -100, -88, 88, 200, 3e38F, -3e38F, kNan};
  for (int i = 0; i < 8; ++i) {
    gate_up[0][i] = values[i];
  }
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const Leaf x(gate_up.to(dtype));
    const at::Tensor out = swiglu(x.gpu);
    expect_close(out, swiglu_reference(x.wide), tolerance(dtype, 64), at::full({1, 8}, 1.0));
    out.sum().backward();
    EXPECT_TRUE(x.gpu.grad()[0].narrow(0, 0, 5).isfinite().all().item<bool>());
    EXPECT_TRUE(x.gpu.grad()[0][7].isnan().item<bool>());
  }
}

// What a cast would find in memory, to the bit.
TEST_P(SwigluOnGpu, AmaxIsThatOfWhatIsStored) {
  const auto [dtype, rows, ffn] = GetParam();
  const at::Tensor gate_up = at::randn({rows, 2 * ffn}).mul(3).to(dtype).cuda();
  const at::Tensor grad_out = at::randn({rows, ffn}).to(dtype).cuda();
  for (const bool with_nan : {false, true}) {
    if (with_nan) {
      gate_up[rows - 1][ffn - 1] = kNan;
    }
    const at::Tensor out = at::empty({rows, ffn}, gate_up.options());
    const at::Tensor grad = at::empty_like(gate_up);
    const at::Tensor amax = at::full({2}, 7e30F, gate_up.options().dtype(at::kFloat));
    auto* of = amax.mutable_data_ptr<float>();
    const cuda::LaunchScope scope(out);
    with_element_type(gate_up, [&, rows = rows, ffn = ffn](auto element) {
      using T = decltype(element);
      kernels::swiglu(const_pointer<T>(gate_up), mutable_pointer<T>(out), rows, ffn, of,
                      scope.stream());
      kernels::swiglu_backward(const_pointer<T>(grad_out), const_pointer<T>(gate_up),
                               mutable_pointer<T>(grad), rows, ffn, of + 1, scope.stream());
    });
    EXPECT_EQ(amax.isnan().all().item<bool>(), with_nan);
    if (!with_nan) {
      expect_bitwise_equal(amax[0], out.to(at::kFloat).abs().amax());
      expect_bitwise_equal(amax[1], grad.to(at::kFloat).abs().amax());
      expect_bitwise_equal(out, swiglu(gate_up));
    }
  }
}

TEST(SwigluOnGpu, HandsItsAmaxOn) {
  const at::Tensor gate_up = at::randn({64, 256}).to(at::kBFloat16).cuda();
  const at::Tensor out = swiglu(gate_up, /*with_amax=*/true);
  const at::Tensor amax = take_known_amax(out.view({32, 256}));
  ASSERT_TRUE(amax.defined());
  expect_bitwise_equal(amax, out.to(at::kFloat).abs().amax());
  const at::Tensor plain = swiglu(gate_up);
  EXPECT_FALSE(take_known_amax(plain).defined());
}

class CrossEntropyOnGpu : public ::testing::TestWithParam<Shape> {};

TEST_P(CrossEntropyOnGpu, MatchesFp64ForwardAndBackward) {
  const auto [dtype, rows, vocab] = GetParam();
  const Leaf logits(at::randn({rows, vocab}).mul(5).to(dtype));
  const at::Tensor targets = at::randint(vocab, {rows}, at::kLong);
  if (rows > 2) {
    targets[1] = -100;
  }
  const at::Tensor loss = cross_entropy_sum(logits.gpu, targets.cuda());
  loss.mul(0.25).backward();
  const at::Tensor loss64 = cross_entropy_sum_reference(logits.wide, targets);
  loss64.mul(0.25).backward();
  EXPECT_EQ(loss.scalar_type(), at::kFloat);
  expect_close(loss, loss64, tolerance(at::kFloat, vocab), at::full({}, static_cast<double>(rows)));
  const at::Tensor magnitude = logits.wide.grad().abs();
  for (int64_t row = 0; row < rows; ++row) {
    if (const auto target = targets[row].item<int64_t>(); target >= 0) {
      magnitude[row][target].add_(0.25);
    }
  }
  expect_close(logits.gpu.grad(), logits.wide.grad(), tolerance(dtype, vocab + 64), magnitude);
}

INSTANTIATE_TEST_SUITE_P(Shapes, CrossEntropyOnGpu,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16),
                                            ::testing::Values(1, 3, 65),
                                            ::testing::Values(1, 2, 16, 217, 4096, 32003, 50304)));

TEST(CrossEntropyOnGpu, EdgesAreThoseOfTheCpu) {
  const at::Tensor large = at::tensor({1e4F, 1e4F, -1e4F, -1e30F}).view({1, 4}).cuda();
  EXPECT_NEAR(cross_entropy_sum(large, at::tensor({1L}).cuda()).item<double>(), 0.69314718, 1e-3);
  const at::Tensor impossible =
      at::tensor({0.0F, -kInfinity, -kInfinity, 1.0F}).view({1, 4}).cuda();
  EXPECT_NEAR(cross_entropy_sum(impossible, at::tensor({3L}).cuda()).item<double>(), 0.31326169,
              1e-6);
  const Leaf logits(at::full({3, 5}, kNan).index_fill(0, at::tensor({1L}), 0));
  const at::Tensor loss = cross_entropy_sum(logits.gpu, at::tensor({-100L, 2L, -100L}).cuda());
  loss.backward();
  EXPECT_NEAR(loss.item<double>(), std::log(5.0), 1e-6);
  expect_bitwise_equal(logits.gpu.grad()[0], at::zeros({5}));
  expect_bitwise_equal(logits.gpu.grad()[2], at::zeros({5}));
  EXPECT_EQ(cross_entropy_sum(at::empty({0, 4}, at::kCUDA), at::empty({0}, at::kLong).cuda())
                .item<float>(),
            0.0F);
  for (const int64_t out_of_range : {-1L, 4L, 1L << 40}) {
    EXPECT_TRUE(cross_entropy_sum(large, at::tensor({out_of_range}).cuda()).isnan().item<bool>());
  }
}

class SplitQkvRopeOnGpu
    : public ::testing::TestWithParam<std::tuple<at::ScalarType, int64_t, int64_t, bool>> {};

TEST_P(SplitQkvRopeOnGpu, MatchesFp64ForwardAndBackward) {
  const auto [dtype, length, head_dim, has_norm] = GetParam();
  const HeadCounts heads{4, 2};
  TransformerConfig config;
  config.head_dim = head_dim;
  const RotaryTable table = make_rotary_table(config, length + 5);
  const RotaryTable gpu_table{table.cos.cuda(), table.sin.cuda()};
  const Leaf qkv({3, length, 8 * head_dim}, dtype);
  const Leaf q_weight({head_dim}, at::kFloat);
  const Leaf k_weight({head_dim}, at::kFloat);
  const QKNorm norm = has_norm ? QKNorm{q_weight.gpu, k_weight.gpu} : QKNorm{};
  const QKNorm norm64 = has_norm ? QKNorm{q_weight.wide, k_weight.wide} : QKNorm{};
  const QKV out = split_qkv_rope(qkv.gpu, gpu_table, 5, heads, norm);
  const QKV out64 = split_qkv_rope_reference(qkv.wide, table, 5, heads, norm64);
  const double allowed = tolerance(dtype, head_dim) * (has_norm ? 3 : 1);
  expect_close(out.q, out64.q, allowed);
  expect_close(out.k, out64.k, allowed);
  expect_bitwise_equal(out.v, out64.v.to(dtype));
  EXPECT_EQ(out.q.transpose(1, 2).is_contiguous(), true);

  const at::Tensor grad_q = at::randn(out64.q.sizes()).to(dtype);
  const at::Tensor grad_k = at::randn(out64.k.sizes()).to(dtype);
  const at::Tensor grad_v = at::randn(out64.v.sizes()).to(dtype);
  out.q.mul(grad_q.cuda())
      .sum()
      .add(out.k.mul(grad_k.cuda()).sum())
      .add(out.v.mul(grad_v.cuda()).sum())
      .backward();
  out64.q.mul(grad_q)
      .sum()
      .add(out64.k.mul(grad_k).sum())
      .add(out64.v.mul(grad_v).sum())
      .backward();
  expect_close(qkv.gpu.grad(), qkv.wide.grad(), 2 * allowed);
}

INSTANTIATE_TEST_SUITE_P(Shapes, SplitQkvRopeOnGpu,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16),
                                            ::testing::Values(1, 7, 200),
                                            ::testing::Values(2, 10, 64, 128), ::testing::Bool()));

TEST(DropoutOnGpu, HasTheBitsOfTheCpu) {
  DropoutMask mask;
  mask.p = 0.3;
  mask.key = dropout_key(7, "layers.0.mlp.down_proj");
  mask.step = 11;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const int64_t first : {int64_t{0}, int64_t{3}, (int64_t{1} << 40) + 1}) {
      for (const int64_t count : {0, 1, 6, 1023, 100001}) {
        mask.first_element = first;
        const at::Tensor x = at::randn({count}).to(dtype);
        expect_bitwise_equal(dropout(x.to(at::kCUDA), mask).to(at::kCPU), dropout(x, mask));
      }
    }
  }
}

TEST(DropoutOnGpu, LinearMatchesFp64ForwardAndBackward) {
  DropoutMask mask;
  mask.p = 0.4;
  const Leaf x({33, 40}, at::kFloat);
  const Leaf weight({8, 40}, at::kFloat);
  const at::Tensor grad_y = at::randn({33, 8});
  const at::Tensor y = dropout_linear(x.gpu, weight.gpu, mask);
  y.backward(grad_y.to(at::kCUDA));
  const at::Tensor factor = dropout(at::ones({33, 40}), mask).to(at::kDouble);
  const at::Tensor y64 = at::linear(x.wide.mul(factor), weight.wide);
  y64.backward(grad_y.to(at::kDouble));
  expect_close(y.detach().to(at::kCPU), y64.detach(), 1e-5);
  expect_close(x.gpu.grad().to(at::kCPU), x.wide.grad(), 1e-5);
  expect_close(weight.gpu.grad().to(at::kCPU), weight.wide.grad(), 1e-5);
}

}  // namespace
}  // namespace narrowgauge::nn
