// What sparse matrices save on the CPU beside dense bf16, in libtorch's products.
//
//   OMP_NUM_THREADS=1 sparse_products [ROUNDS]
//
// In turn, ROUNDS times, medians, each against its partner in the same round:
//   masks of 4x4 tiles and packing, in one pass, beside a copy of as many bytes
//   a block-sparse product, 90 % of the blocks of 64 zero, at 2048 tokens, beside the dense one
//   a 2:4 product of one token beside the dense one

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "memory/tensor_arena.h"
#include "sparsity/block_sparse.h"
#include "sparsity/semi_structured.h"

namespace narrowgauge {
namespace {

using sparsity::TileAlgorithm;

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Prints the medians of both and of their ratio; `bytes`, if not 0, are what each moves.
void compare(const std::string& what, int rounds, int64_t bytes,
             const std::function<void()>& sparse, const std::function<void()>& reference) {
  std::vector<double> sparse_times;
  std::vector<double> reference_times;
  std::vector<double> ratios;
  sparse();
  reference();
  for (int round = 0; round < rounds; ++round) {
    sparse_times.push_back(seconds_of(sparse));
    reference_times.push_back(seconds_of(reference));
    ratios.push_back(reference_times.back() / sparse_times.back());
  }
  const double ours = median(sparse_times);
  const double theirs = median(reference_times);
  std::printf("%-58s %9.3f ms %9.3f ms  %5.2f times", what.c_str(), 1e3 * ours, 1e3 * theirs,
              median(ratios));
  if (bytes != 0) {
    std::printf("  %6.2f GB/s beside %6.2f", static_cast<double>(bytes) / ours / 1e9,
                static_cast<double>(bytes) / theirs / 1e9);
  }
  std::printf("\n");
}

at::Tensor random_matrix(int64_t rows, int64_t cols) {
  return at::randn({rows, cols}, at::kFloat).to(at::kBFloat16);
}

// A pass that reads the matrix and writes 9/16 of it, and a copy that reads and writes as much.
void compare_packing(int64_t rows, int64_t cols, int rounds) {
  const at::Tensor weight = random_matrix(rows, cols);
  const int64_t bytes = rows * cols * 2 * 25 / 16;
  const at::Tensor from = at::empty({bytes / 2}, at::kByte).fill_(1);
  const at::Tensor to = at::empty({bytes / 2}, at::kByte).fill_(2);
  const auto copy = [&] {
    at::parallel_for(0, bytes / 2, 1 << 20, [&](int64_t begin, int64_t end) {
      std::memcpy(to.mutable_data_ptr<uint8_t>() + begin, from.const_data_ptr<uint8_t>() + begin,
                  static_cast<size_t>(end - begin));
    });
  };
  const std::string sizes = " " + std::to_string(rows) + " x " + std::to_string(cols);
  compare(
      "masks (greedy) and packing" + sizes, rounds, bytes,
      [&] { sparsity::prune_and_compress(weight, TileAlgorithm::kLargestAbsValuesGreedy); }, copy);
  compare(
      "masks (optimal) and packing" + sizes, rounds, bytes,
      [&] { sparsity::prune_and_compress(weight, TileAlgorithm::kOptimal); }, copy);
  const at::Tensor mask = sparsity::semi_structured_mask(weight, TileAlgorithm::kOptimal);
  compare(
      "packing alone" + sizes, rounds, bytes, [&] { sparsity::compress(weight, mask); }, copy);
}

void compare_blocks(int64_t rows, int64_t cols, int64_t tokens, double zeros, int rounds) {
  constexpr int64_t kBlock = 64;
  const at::Tensor keep = at::rand({rows / kBlock, cols / kBlock})
                              .ge(zeros)
                              .to(at::kBFloat16)
                              .repeat_interleave(kBlock, 0)
                              .repeat_interleave(kBlock, 1);
  const at::Tensor weight = random_matrix(rows, cols).mul(keep);
  const sparsity::BlockSparseMatrix sparse = sparsity::to_block_sparse(weight, kBlock);
  const at::Tensor x = random_matrix(tokens, cols);
  char what[96];
  std::snprintf(what, sizeof what, "blocks of 64, %2.0f %% zero, %ld tokens %ld x %ld", 100 * zeros,
                tokens, rows, cols);
  compare(
      what, rounds, 0, [&] { sparsity::block_sparse_matmul(x, sparse); },
      [&] { at::linear(x, weight); });
}

void compare_matvec(int64_t rows, int64_t cols, int64_t tokens, int rounds) {
  const at::Tensor weight = random_matrix(rows, cols);
  const at::Tensor x = random_matrix(tokens, cols);
  const sparsity::SemiStructuredTensor packed =
      sparsity::prune_and_compress(weight, TileAlgorithm::kOptimal);
  char what[96];
  std::snprintf(what, sizeof what, "2:4, %ld token%s %ld x %ld", tokens, tokens == 1 ? "" : "s",
                rows, cols);
  compare(
      what, rounds, 0, [&] { sparsity::semi_structured_matvec(x, packed); },
      [&] { at::linear(x, weight); });
}

int run(int rounds) {
  const at::NoGradGuard no_grad;
  std::printf("%d threads; sparse, its partner, how many times as fast\n", at::get_num_threads());
  compare_packing(4096, 4096, rounds);
  compare_packing(14336, 4096, rounds);
  compare_packing(1024, 1024, 8 * rounds);
  for (const double zeros : {0.7, 0.8, 0.9}) {
    compare_blocks(4096, 4096, 2048, zeros, std::max(1, rounds / 2));
  }
  for (const int64_t tokens : {1, 2, 4}) {
    compare_matvec(4096, 4096, tokens, 2 * rounds);
    compare_matvec(14336, 4096, tokens, rounds);
  }
  return 0;
}

}  // namespace
}  // namespace narrowgauge

int main(int argc, char** argv) {
  // As in training, whose results' memory is there already.
  c10::SetCPUAllocator(
      new narrowgauge::memory::TensorArena(size_t{4} << 30, *c10::GetDefaultCPUAllocator()));
  return narrowgauge::run(argc > 1 ? std::atoi(argv[1]) : 7);
}
