#include "nn/causal_attention.h"

#include <ATen/Parallel.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <tuple>
#include <vector>

#include "tests/support/numerics.h"

namespace narrowgauge::nn {
namespace {

using narrowgauge::testing::expect_bitwise_equal;
using narrowgauge::testing::expect_close;

RotaryTable table_of(int64_t head_dim, int64_t length) {
  TransformerConfig config;
  config.head_dim = head_dim;
  return make_rotary_table(config, length);
}

struct Outcome {
  at::Tensor out;
  at::Tensor grad_qkv;
};

using Attention = std::function<at::Tensor(const at::Tensor& qkv)>;

Outcome run(const Attention& attention, const at::Tensor& qkv, const at::Tensor& grad_out) {
  const at::Tensor input = qkv.detach().clone().requires_grad_();
  const at::Tensor out = attention(input);
  out.backward(grad_out.to(out.scalar_type()));
  return {out.detach(), input.grad()};
}

double relative_error(const at::Tensor& x, const at::Tensor& exact) {
  const at::Tensor wide = exact.to(at::kDouble);
  return x.to(at::kDouble).sub(wide).norm().item<double>() /
         std::max(wide.norm().item<double>(), 1e-300);
}

// What training did before: heads in memory, libtorch's flash attention.
at::Tensor by_libtorch(const at::Tensor& qkv, const RotaryTable& table, HeadCounts heads) {
  const auto [q, k, v] = split_qkv_rope(qkv, table, 0, heads);
  return at::scaled_dot_product_attention(q, k, v, {}, 0.0, /*is_causal=*/true, std::nullopt,
                                          heads.num_heads != heads.num_kv_heads)
      .transpose(1, 2)
      .flatten(2);
}

// Head size, length, query heads, key/value heads.
using Shape = std::tuple<int64_t, int64_t, int64_t, int64_t>;

class CausalAttentionTest
    : public ::testing::TestWithParam<std::tuple<at::ScalarType, AttentionInstructions, Shape>> {
 protected:
  CausalAttentionTest() {
    std::tie(dtype_, instructions_, shape_) = GetParam();
    std::tie(head_dim_, length_, heads_.num_heads, heads_.num_kv_heads) = shape_;
    table_ = table_of(head_dim_, length_ + 3);
    const int64_t width = (heads_.num_heads + 2 * heads_.num_kv_heads) * head_dim_;
    qkv_ = at::randn({2, length_, width}).to(dtype_);
    grad_out_ = at::randn({2, length_, heads_.num_heads * head_dim_}).to(dtype_);
  }
  Outcome ours() const {
    return run(
        [this](const at::Tensor& x) {
          return causal_attention(x, table_, heads_, {}, instructions_);
        },
        qkv_, grad_out_);
  }
  Outcome exact() const {
    return run(
        [this](const at::Tensor& x) { return causal_attention_reference(x, table_, heads_); },
        qkv_.to(at::kDouble), grad_out_);
  }

  at::ScalarType dtype_;
  AttentionInstructions instructions_;
  Shape shape_;
  int64_t head_dim_;
  int64_t length_;
  HeadCounts heads_;
  RotaryTable table_;
  at::Tensor qkv_;
  at::Tensor grad_out_;
};

// Bounds in units of u, the unit roundoff of the dtype, on relative errors of whole tensors.
// Forward in bf16: q, k, P and the output are each rounded once. A rounding of q or k moves a score
// s by at most u |q| |k| / sqrt(D), on average u s-sized noise of a standard normal over sqrt(3)
// each, so P by as much relatively; independent errors add up as squares: below 3 u. Backward has
// three more roundings (dS, the output inside of delta, the gradient): below 6 u. In fp32 the sums
// of D and T products in order add sqrt of their lengths.
TEST_P(CausalAttentionTest, MatchesFp64ForwardAndBackward) {
  const Outcome actual = ours();
  const Outcome expected = exact();
  const bool is_bf16 = dtype_ == at::kBFloat16;
  const double unit = is_bf16 ? std::ldexp(1.0, -9) : std::ldexp(1.0, -24);
  const double sums = is_bf16 ? 1 : 1 + std::sqrt(static_cast<double>(length_ + head_dim_));
  EXPECT_LT(relative_error(actual.out, expected.out), 3 * unit * sums);
  EXPECT_LT(relative_error(actual.grad_qkv, expected.grad_qkv), 6 * unit * sums);
  EXPECT_EQ(actual.out.scalar_type(), dtype_);
  EXPECT_TRUE(actual.out.isfinite().all().item<bool>());
  EXPECT_TRUE(actual.grad_qkv.isfinite().all().item<bool>());
}

TEST_P(CausalAttentionTest, IsAsAccurateAsLibtorchs) {
  const Outcome actual = ours();
  const Outcome expected = exact();
  const Outcome theirs =
      run([this](const at::Tensor& x) { return by_libtorch(x, table_, heads_); }, qkv_, grad_out_);
  // fp32 differs by the order of additions alone: libtorch's sums are blocked more finely.
  const double allowed = dtype_ == at::kBFloat16 ? 1.1 : 3;
  EXPECT_LE(relative_error(actual.out, expected.out),
            allowed * relative_error(theirs.out, expected.out));
  EXPECT_LE(relative_error(actual.grad_qkv, expected.grad_qkv),
            allowed * relative_error(theirs.grad_qkv, expected.grad_qkv));
}

TEST_P(CausalAttentionTest, SameBitsForAnyNumberOfThreads) {
  const int threads = at::get_num_threads();
  const Outcome one = (at::set_num_threads(1), ours());
  const Outcome five = (at::set_num_threads(5), ours());
  at::set_num_threads(threads);
  expect_bitwise_equal(one.out, five.out);
  expect_bitwise_equal(one.grad_qkv, five.grad_qkv);
}

// A row of a batch, or the tokens up to one, know nothing of the others.
TEST_P(CausalAttentionTest, RowsAndLaterTokensDoNotMatter) {
  const at::Tensor out = ours().out;
  const at::Tensor alone =
      causal_attention(qkv_.narrow(0, 1, 1), table_, heads_, {}, instructions_);
  expect_bitwise_equal(alone, out.narrow(0, 1, 1));
  const int64_t prefix = (length_ + 1) / 2;
  expect_bitwise_equal(
      causal_attention(qkv_.narrow(1, 0, prefix), table_, heads_, {}, instructions_),
      out.narrow(1, 0, prefix));
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, CausalAttentionTest,
    ::testing::Combine(
        ::testing::Values(at::kFloat, at::kBFloat16),
        ::testing::Values(AttentionInstructions::kBest, AttentionInstructions::kPortable),
        ::testing::Values(Shape{64, 256, 6, 2}, Shape{64, 129, 4, 4}, Shape{32, 300, 4, 1},
                          Shape{80, 77, 2, 1}, Shape{128, 65, 4, 2}, Shape{8, 64, 2, 2},
                          Shape{22, 33, 3, 1}, Shape{2, 9, 2, 1}, Shape{256, 40, 1, 1},
                          Shape{64, 1, 2, 1})));

TEST(CausalAttention, TakesQKNorm) {
  const RotaryTable table = table_of(16, 20);
  const HeadCounts heads{4, 2};
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor qkv = at::randn({2, 20, 8 * 16}).to(dtype);
    const at::Tensor grad = at::randn({2, 20, 4 * 16});
    at::Tensor weight_grads[2][2];
    Outcome outcomes[2];
    const at::Tensor weights = at::randn({2, 16});
    for (int exact = 0; exact < 2; ++exact) {
      const auto type = exact ? at::kDouble : at::kFloat;
      const QKNorm norm{weights[0].to(type).clone().requires_grad_(),
                        weights[1].to(type).clone().requires_grad_(), 1e-6};
      outcomes[exact] = run(
          [&](const at::Tensor& x) {
            return exact ? causal_attention_reference(x, table, heads, norm)
                         : causal_attention(x, table, heads, norm);
          },
          qkv.to(exact ? at::kDouble : dtype), grad);
      weight_grads[exact][0] = norm.q_weight.grad();
      weight_grads[exact][1] = norm.k_weight.grad();
    }
    const double bound = dtype == at::kFloat ? 1e-5 : 0.02;
    EXPECT_LT(relative_error(outcomes[0].out, outcomes[1].out), bound);
    EXPECT_LT(relative_error(outcomes[0].grad_qkv, outcomes[1].grad_qkv), bound);
    EXPECT_LT(relative_error(weight_grads[0][0], weight_grads[1][0]), bound);
    EXPECT_LT(relative_error(weight_grads[0][1], weight_grads[1][1]), bound);
  }
}

// Scores far beyond what exp can take: the softmax is a choice of the largest.
TEST(CausalAttention, LargeScoresDoNotOverflow) {
  const RotaryTable table = table_of(32, 200);
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor qkv = at::randn({1, 200, 3 * 32}).mul(300).to(dtype);
    const at::Tensor grad = at::randn({1, 200, 32});
    const Outcome actual = run(
        [&](const at::Tensor& x) {
          return causal_attention(x, table, {1, 1});
        },
        qkv, grad);
    EXPECT_TRUE(actual.out.isfinite().all().item<bool>());
    EXPECT_TRUE(actual.grad_qkv.isfinite().all().item<bool>());
    // Whatever is chosen is a mixture of values.
    EXPECT_LE(actual.out.abs().max().item<double>(),
              qkv.narrow(2, 64, 32).abs().max().item<double>() * 1.01);
  }
}

TEST(CausalAttention, EqualScoresAverageTheValues) {
  const RotaryTable table = table_of(8, 150);
  at::Tensor qkv = at::randn({1, 150, 3 * 8});
  qkv.narrow(2, 0, 8).zero_();
  const at::Tensor out = causal_attention(qkv, table, {1, 1});
  const at::Tensor counts = at::full({150}, 1.0).cumsum(0).unsqueeze(1);
  expect_close(out[0], qkv[0].narrow(1, 16, 8).to(at::kDouble).cumsum(0).div(counts).to(at::kFloat),
               1e-5);
}

TEST(CausalAttention, NaNReachesThoseWhoSeeIt) {
  const RotaryTable table = table_of(16, 300);
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const float poison :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      at::Tensor qkv = at::randn({1, 300, 3 * 16}).to(dtype);
      qkv[0][200][16 + 3] = poison;  // a key
      const at::Tensor out = causal_attention(qkv, table, {1, 1});
      EXPECT_TRUE(out.narrow(1, 0, 200).isfinite().all().item<bool>());
      if (std::isnan(poison)) {  // a score of -infinity only takes the key's weight
        EXPECT_TRUE(out.narrow(1, 200, 100).isnan().all().item<bool>());
      }
      qkv = at::randn({1, 300, 3 * 16}).to(dtype);
      qkv[0][200][32 + 3] = poison;  // a value
      const at::Tensor of_value = causal_attention(qkv, table, {1, 1});
      EXPECT_FALSE(of_value.narrow(1, 200, 100).select(2, 3).isfinite().any().item<bool>());
      EXPECT_TRUE(of_value.narrow(1, 0, 200 - 128).isfinite().all().item<bool>());
    }
  }
}

TEST(CausalAttention, StridedAndEmptyInput) {
  const RotaryTable table = table_of(16, 10);
  const at::Tensor wide = at::randn({2, 10, 100});
  const at::Tensor strided = wide.narrow(2, 7, 48);
  expect_bitwise_equal(causal_attention(strided, table, {1, 1}),
                       causal_attention(strided.contiguous(), table, {1, 1}));
  for (const auto& sizes : {std::vector<int64_t>{0, 10, 48}, std::vector<int64_t>{2, 0, 48}}) {
    const at::Tensor empty = at::randn(sizes).requires_grad_();
    const at::Tensor out = causal_attention(empty, table, {1, 1});
    EXPECT_EQ(out.sizes(), (std::vector<int64_t>{sizes[0], sizes[1], 16}));
    out.sum().backward();
    EXPECT_EQ(empty.grad().sizes(), empty.sizes());
  }
}

TEST(CausalAttention, OtherTypesAndLargeHeadsGoThroughLibtorch) {
  const RotaryTable table = table_of(320, 12);
  const at::Tensor qkv = at::randn({1, 12, 4 * 320});
  EXPECT_LT(relative_error(causal_attention(qkv, table, {2, 1}),
                           causal_attention_reference(qkv.to(at::kDouble), table, {2, 1})),
            1e-6);
  const at::Tensor wide = qkv.to(at::kDouble);
  EXPECT_LT(relative_error(causal_attention(wide, table, {2, 1}),
                           causal_attention_reference(wide, table, {2, 1})),
            1e-14);
}

at::Tensor int32_tensor(const std::vector<int64_t>& values) {
  return at::tensor(values, at::kLong).to(at::kInt);
}

// Rows of 150 tokens: documents of 1, 64, 85, then 150, then 129, 1, 1, 19.
const std::vector<int64_t> kDocumentEnds = {1, 65, 150, 300, 429, 430, 431, 450};

TEST_P(CausalAttentionTest, PackedDocumentsHaveTheBitsOfDocumentsAlone) {
  const int64_t width = qkv_.size(2);
  const RotaryTable table = table_of(head_dim_, 150);
  const at::Tensor qkv = at::randn({3, 150, width}).to(dtype_);
  const at::Tensor grad_out = at::randn({3, 150, heads_.num_heads * head_dim_}).to(dtype_);
  std::vector<int64_t> cu_seqlens = {0};
  cu_seqlens.insert(cu_seqlens.end(), kDocumentEnds.begin(), kDocumentEnds.end());
  const Outcome packed = run(
      [&](const at::Tensor& x) {
        return causal_attention(x, table, heads_, {}, instructions_, int32_tensor(cu_seqlens));
      },
      qkv, grad_out);
  for (size_t i = 0; i + 1 < cu_seqlens.size(); ++i) {
    const auto document = [&](const at::Tensor& x) {
      const int64_t length = cu_seqlens[i + 1] - cu_seqlens[i];
      return x.flatten(0, 1).narrow(0, cu_seqlens[i], length).unsqueeze(0);
    };
    const Outcome alone = run(
        [&](const at::Tensor& x) { return causal_attention(x, table, heads_, {}, instructions_); },
        document(qkv), document(grad_out));
    expect_bitwise_equal(document(packed.out), alone.out);
    expect_bitwise_equal(document(packed.grad_qkv), alone.grad_qkv);
  }
}

TEST(CausalAttention, PackedDocumentsThroughLibtorchDoNotSeeEachOther) {
  const RotaryTable table = table_of(4, 150);
  const at::Tensor qkv = at::randn({3, 150, 16}, at::kDouble);
  std::vector<int64_t> cu_seqlens = {0};
  cu_seqlens.insert(cu_seqlens.end(), kDocumentEnds.begin(), kDocumentEnds.end());
  const at::Tensor packed = causal_attention(qkv, table, {2, 1}, {}, AttentionInstructions::kBest,
                                             int32_tensor(cu_seqlens));
  for (size_t i = 0; i + 1 < cu_seqlens.size(); ++i) {
    const auto document = [&](const at::Tensor& x) {
      const int64_t length = cu_seqlens[i + 1] - cu_seqlens[i];
      return x.flatten(0, 1).narrow(0, cu_seqlens[i], length).unsqueeze(0);
    };
    // Positions run through the row: the table's fp32 cosines differ in rounding.
    EXPECT_LT(relative_error(document(packed), causal_attention(document(qkv), table, {2, 1})),
              1e-6);
  }
}

TEST(CausalAttention, WrongDocumentsAreRefused) {
  const RotaryTable table = table_of(4, 8);
  const at::Tensor qkv = at::randn({2, 8, 12});
  const auto attend = [&](const at::Tensor& cu_seqlens) {
    return causal_attention(qkv, table, {1, 1}, {}, AttentionInstructions::kBest, cu_seqlens);
  };
  EXPECT_EQ(attend(int32_tensor({0, 3, 8, 16})).size(0), 2);
  for (const std::vector<int64_t>& wrong : std::vector<std::vector<int64_t>>{
           {0, 16}, {0, 8}, {1, 8, 16}, {0, 8, 8, 16}, {0, 9, 16}, {0, 12, 8, 16}, {0, 8, 17}}) {
    EXPECT_THROW(attend(int32_tensor(wrong)), c10::Error);
  }
  EXPECT_THROW(attend(at::tensor(std::vector<int64_t>{0, 8, 16}, at::kLong)), c10::Error);
}

TEST(CausalAttention, WrongArgumentsAreRefused) {
  const RotaryTable table = table_of(4, 8);
  EXPECT_THROW(causal_attention(at::randn({1, 9, 12}), table, {1, 1}), c10::Error);
  EXPECT_THROW(causal_attention(at::randn({1, 8, 16}), table, {1, 1}), c10::Error);
  EXPECT_THROW(causal_attention(at::randn({1, 8, 28}), table, {3, 2}), c10::Error);
}

}  // namespace
}  // namespace narrowgauge::nn
