// 2:4 sparsity on a GPU: a linear's forward and backward, sparse beside dense, at the shapes that
// the peer's figures are of (ViT-L, 13,008 tokens) and at a Llama's; and what it costs to prune and
// to pack, beside cuSPARSELt's own compression.
//   sparse_gpu_benchmark [FILTER]     only lines whose name contains FILTER

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_cslt_compress.h>

#include <cstdio>
#include <string>

#include "benchmarks/gpu/kernel_benchmark.h"
#include "cuda/libtorch_cuda.h"
#include "nn/linear.h"
#include "sparsity/semi_sparse_linear.h"

namespace narrowgauge {
namespace {

void benchmark_linear(const Benchmark& b, int64_t tokens, int64_t in, int64_t out) {
  const std::string shape =
      " " + std::to_string(tokens) + " x " + std::to_string(in) + " x " + std::to_string(out);
  nn::Linear dense({in, out}, at::TensorOptions(at::kCUDA).dtype(at::kBFloat16));
  {
    const at::NoGradGuard no_grad;
    dense.weight.normal_(0, 0.02);
  }
  sparsity::SemiSparseLinear sparse(dense, {});
  const at::Tensor x = Benchmark::random({tokens, in}, at::kBFloat16).requires_grad_();
  const at::Tensor grad = Benchmark::random({tokens, out}, at::kBFloat16);
  const double flops = 6.0 * static_cast<double>(tokens * in * out);
  const auto step = [&](nn::Linear& linear) {
    dense.weight.mutable_grad() = at::Tensor();
    x.mutable_grad() = at::Tensor();
    linear(x).backward(grad);
  };
  b.run_flops("linear dense" + shape, flops, [&] { step(dense); });
  b.run_flops("linear sparse, kept mask" + shape, flops, [&] { step(sparse); });
  b.run_flops("linear sparse, new mask" + shape, flops, [&] {
    sparse.set_refresh_mask(true);
    step(sparse);
  });
}

void benchmark_packing(const Benchmark& b, int64_t rows, int64_t cols) {
  const std::string shape = " " + std::to_string(rows) + " x " + std::to_string(cols);
  const at::Tensor weight = Benchmark::random({rows, cols}, at::kBFloat16);
  const double read = static_cast<double>(weight.nbytes());
  const auto algorithm = sparsity::TileAlgorithm::kOptimal;
  const at::Tensor mask = sparsity::semi_structured_mask(weight, algorithm);
  const at::Tensor masked = sparsity::apply_mask(weight, mask);
  b.run("optimal mask" + shape, read * (1 + 1.0 / 16),
        [&] { sparsity::semi_structured_mask(weight, algorithm); });
  b.run("apply mask" + shape, read * (2 + 1.0 / 16), [&] { sparsity::apply_mask(weight, mask); });
  b.run("_cslt_compress, one way" + shape, read * (1 + 9.0 / 16),
        [&] { at::_cslt_compress(masked); });
}

}  // namespace
}  // namespace narrowgauge

int main(int argc, char** argv) {
  using namespace narrowgauge;
  if (const std::string problem = cuda::load_libtorch_cuda(); !problem.empty()) {
    std::fprintf(stderr, "sparse_gpu_benchmark: %s\n", problem.c_str());
    return 1;
  }
  const Benchmark b(argc > 1 ? argv[1] : "");
  benchmark_linear(b, 13008, 1024, 4096);
  benchmark_linear(b, 13008, 4096, 1024);
  benchmark_linear(b, 8192, 4096, 14336);
  benchmark_linear(b, 8192, 14336, 4096);
  benchmark_packing(b, 4096, 1024);
  benchmark_packing(b, 14336, 4096);
}
