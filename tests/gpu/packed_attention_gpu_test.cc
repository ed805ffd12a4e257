// Documents packed into rows on a GPU beside each document alone there: output and gradient.

#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "nn/causal_attention.h"
#include "tests/support/numerics.h"

namespace narrowgauge::nn {
namespace {

using narrowgauge::testing::sqnr_db;

constexpr HeadCounts kHeads = {4, 2};
constexpr int64_t kHeadDim = 64;
constexpr int64_t kLength = 150;
// Of two rows: documents of 1, 64, 85 and of 129, 1, 20.
const std::vector<int64_t> kCuSeqlens = {0, 1, 65, 150, 279, 280, 300};

struct Outcome {
  at::Tensor out;
  at::Tensor grad;
};

Outcome attend(const at::Tensor& qkv, const at::Tensor& grad_out, const RotaryTable& table,
               const at::Tensor& cu_seqlens) {
  const at::Tensor leaf = qkv.detach().clone().requires_grad_();
  const at::Tensor out =
      causal_attention(leaf, table, kHeads, {}, AttentionInstructions::kBest, cu_seqlens);
  out.backward(grad_out);
  return {out.detach(), leaf.grad()};
}

TEST(PackedAttentionOnGpu, DocumentsDoNotSeeEachOther) {
  TransformerConfig config;
  config.head_dim = kHeadDim;
  RotaryTable table = make_rotary_table(config, kLength);
  table = {table.cos.to(at::kCUDA), table.sin.to(at::kCUDA)};
  const at::Tensor cu_seqlens = at::tensor(kCuSeqlens, at::kLong).to(at::kCUDA, at::kInt);
  // Kernels differ (a masked one, which may take TF32, and a causal one), rotations by a rounding.
  for (const auto& [dtype, least_db] :
       {std::pair(at::kFloat, 55.0), std::pair(at::kBFloat16, 35.0)}) {
    const at::TensorOptions options = at::TensorOptions(at::kCUDA).dtype(dtype);
    const at::Tensor qkv = at::randn({2, kLength, 8 * kHeadDim}, options);
    const at::Tensor grad_out = at::randn({2, kLength, 4 * kHeadDim}, options);
    const Outcome packed = attend(qkv, grad_out, table, cu_seqlens);
    for (size_t i = 0; i + 1 < kCuSeqlens.size(); ++i) {
      const auto document = [&](const at::Tensor& rows) {
        const int64_t length = kCuSeqlens[i + 1] - kCuSeqlens[i];
        return rows.flatten(0, 1).narrow(0, kCuSeqlens[i], length).unsqueeze(0);
      };
      const Outcome alone = attend(document(qkv), document(grad_out), table, {});
      EXPECT_GT(sqnr_db(alone.out.cpu(), document(packed.out).cpu()), least_db) << i;
      EXPECT_GT(sqnr_db(alone.grad.cpu(), document(packed.grad).cpu()), least_db) << i;
    }
  }
}

}  // namespace
}  // namespace narrowgauge::nn
