// print_logits MODEL_DIRECTORY TOKEN_ID ...: the model's logits for these tokens on standard
// output, as raw fp32 [num_tokens, vocab_size], and on standard error how many linears stay packed
// as 2:4. For comparison with other implementations.

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "sparsity/packed_semi_sparse_linear.h"
#include "trainer/load_model.h"

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fputs("usage: print_logits MODEL_DIRECTORY TOKEN_ID ...\n", stderr);
    return 2;
  }
  const at::NoGradGuard no_grad;
  const auto loaded = narrowgauge::trainer::load_model(argv[1], "none", at::kCPU);
  std::vector<int64_t> tokens;
  for (int i = 2; i < argc; ++i) {
    tokens.push_back(std::stoll(argv[i]));
  }
  int num_packed = 0;
  for (const auto& module : loaded.model->modules()) {
    num_packed +=
        std::dynamic_pointer_cast<narrowgauge::sparsity::PackedSemiSparseLinear>(module) ? 1 : 0;
  }
  std::fprintf(stderr, "%d packed 2:4 linears\n", num_packed);
  const at::Tensor logits = (*loaded.model)(at::from_blob(tokens.data(), {1, argc - 2}, at::kLong))
                                .to(at::kFloat)
                                .contiguous();
  std::fwrite(logits.data_ptr(), sizeof(float), static_cast<size_t>(logits.numel()), stdout);
  return 0;
}
