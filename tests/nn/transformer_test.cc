#include "nn/transformer.h"

#include <ATen/ops/randint.h>
#include <ATen/ops/tensor.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "nn/initialize.h"
#include "tests/support/numerics.h"

namespace narrowgauge::nn {
namespace {

using narrowgauge::testing::expect_close;
using narrowgauge::testing::tolerance;

constexpr int64_t kLength = 24;  // of a row

TransformerConfig small_config() {
  TransformerConfig config;
  config.vocab_size = 29;
  config.dim = 24;
  config.num_layers = 3;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 6;
  config.ffn_dim = 40;
  config.max_seq_len = 64;
  config.initializer_range = 0.3;  // so that what a token sees matters
  return config;
}

Transformer make_model(const TransformerConfig& config) {
  Transformer model(config, at::TensorOptions(at::kFloat));
  const c10::NoGradGuard no_grad;
  for (const auto& parameter : model.named_parameters()) {
    initialize_parameter(config, 1, parameter.key(), parameter.value(), 0);
  }
  return model;
}

std::vector<at::Tensor> take_gradients(Transformer& model) {
  std::vector<at::Tensor> gradients;
  for (at::Tensor& parameter : model.parameters()) {
    gradients.push_back(parameter.grad().clone());
    parameter.mutable_grad().zero_();
  }
  return gradients;
}

// Documents of these lengths fill two rows.
const std::vector<int64_t> kDocuments = {1, 15, 8, 24};

TEST(Transformer, PackedDocumentsHaveTheLossAndGradientsOfDocumentsAlone) {
  const TransformerConfig config = small_config();
  Transformer model = make_model(config);
  const at::Tensor tokens = at::randint(config.vocab_size, {2, kLength}, at::kLong);
  const at::Tensor targets = at::randint(config.vocab_size, {2, kLength}, at::kLong);
  std::vector<int64_t> cu_seqlens = {0};
  for (const int64_t length : kDocuments) cu_seqlens.push_back(cu_seqlens.back() + length);

  const at::Tensor packed =
      model.loss_sum(tokens, targets, 1.0, at::tensor(cu_seqlens, at::kLong).to(at::kInt));
  packed.backward();
  const std::vector<at::Tensor> packed_gradients = take_gradients(model);

  double alone = 0;
  for (size_t i = 0; i < kDocuments.size(); ++i) {
    const auto document = [&](const at::Tensor& rows) {
      return rows.flatten().narrow(0, cu_seqlens[i], kDocuments[i]).unsqueeze(0);
    };
    const at::Tensor loss = model.loss_sum(document(tokens), document(targets));
    loss.backward();
    alone += loss.item<double>();
  }
  const std::vector<at::Tensor> gradients = take_gradients(model);
  // fp32 sums in another order, over 48 tokens and up to 40 features in each of 3 layers.
  const double allowed = tolerance(at::kFloat, 48 + 3 * 40);
  EXPECT_NEAR(packed.item<double>(), alone, allowed * alone);
  for (size_t i = 0; i < gradients.size(); ++i) {
    expect_close(packed_gradients[i], gradients[i], allowed);
  }
  // Without the boundaries documents see each other: the test would notice.
  const double together = model.loss_sum(tokens, targets).item<double>();
  EXPECT_GT(std::abs(together - alone), 100 * allowed * alone);
}

}  // namespace
}  // namespace narrowgauge::nn
