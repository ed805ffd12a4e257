#include "sparsity/semi_structured.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>
#include <vector>

#include "cuda/launch_scope.h"
#include "nn/kernel_dispatch.h"
#include "sparsity/kernels/semi_structured.h"
#include "sparsity/kernels/semi_structured_matvec.h"
#include "sparsity/kernels/tile_mask_cuda.h"

namespace narrowgauge::sparsity {
namespace {

using nn::const_pointer;
using nn::mutable_pointer;

constexpr int64_t kStripElements = 1 << 18;  // of an unpacked strip: half a megabyte

void check_matrix(const at::Tensor& x) {
  TORCH_CHECK(x.dim() == 2 && has_semi_structured_shape(x.size(0), x.size(1)),
              "expected [rows, cols] with rows a multiple of 4 and cols of 8, got ", x.sizes());
  TORCH_CHECK(nn::has_kernel(x), "expected fp32 or bf16, got ", x.dtype(), " on ", x.device());
}

void check_cpu(const at::Tensor& x) {
  TORCH_CHECK(x.is_cpu(), "expected a tensor on the CPU, got one on ", x.device());
}

void check_mask(const at::Tensor& mask, int64_t rows, int64_t cols) {
  TORCH_CHECK(mask.scalar_type() == at::kByte && mask.is_contiguous() && mask.dim() == 2 &&
                  mask.size(0) == rows && mask.size(1) == cols / 8,
              "expected a contiguous uint8 mask of [", rows, ", ", cols / 8, "], got ",
              mask.dtype(), " ", mask.sizes());
}

// body(first row, number of rows) for strips of rows that are a multiple of 4.
template <typename Body>
void for_strips(int64_t rows, int64_t cols, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, nn::grain_rows(4 * cols));
  at::parallel_for(0, rows / 4, grain,
                   [&](int64_t begin, int64_t end) { body(4 * begin, 4 * (end - begin)); });
}

struct Element {
  double order;
  int64_t row;
  int64_t col;
};

void check_operands(const at::Tensor& x, const SemiStructuredTensor& weight,
                    const at::Tensor& bias) {
  const int64_t rows = weight.values.size(0);
  const int64_t cols = weight.values.size(1) * 2;
  check_mask(weight.metadata, rows, cols);
  TORCH_CHECK(weight.values.is_cpu() && weight.values.scalar_type() == at::kBFloat16,
              "expected a packed weight of bf16 on the CPU, got ", weight.values.dtype(), " on ",
              weight.values.device());
  TORCH_CHECK(x.dim() == 2 && x.size(1) == cols && x.scalar_type() == at::kBFloat16 && x.is_cpu(),
              "expected bf16 [n, ", cols, "] on the CPU, got ", x.dtype(), " ", x.sizes(), " on ",
              x.device());
  TORCH_CHECK(!bias.defined() || (bias.dim() == 1 && bias.size(0) == rows &&
                                  bias.scalar_type() == at::kBFloat16 && bias.is_cpu()),
              "expected a bf16 bias [", rows, "] on the CPU, got one of ", bias.sizes());
}

uint32_t greedy_tile(std::vector<Element> elements, std::array<int, 4> row_room) {
  std::stable_sort(elements.begin(), elements.end(),
                   [](const Element& a, const Element& b) { return a.order > b.order; });
  std::array<int, 4> col_room = {2, 2, 2, 2};
  uint32_t mask = 0;
  for (const Element& element : elements) {
    if (row_room[element.row] > 0 && col_room[element.col] > 0) {
      --row_room[element.row];
      --col_room[element.col];
      mask |= 1U << (4 * element.row + element.col);
    }
  }
  return mask;
}

uint32_t optimal_tile(const std::vector<Element>& elements) {
  double best = -1;
  uint32_t best_mask = 0;
  for (uint32_t mask = 0; mask < 1U << 16; ++mask) {
    bool valid = true;
    for (int i = 0; i < 4 && valid; ++i) {
      valid = __builtin_popcount(mask >> 4 * i & 0xfU) == 2 &&
              __builtin_popcount(mask >> i & 0x1111U) == 2;
    }
    if (!valid) {
      continue;
    }
    double sum = 0;
    for (const Element& element : elements) {
      if ((mask >> (4 * element.row + element.col) & 1U) != 0) {
        sum += element.order * element.order;
      }
    }
    if (sum > best) {
      best = sum;
      best_mask = mask;
    }
  }
  return best_mask;
}

uint32_t tile_reference(const at::TensorAccessor<double, 2>& weight, int64_t row, int64_t col,
                        TileAlgorithm algorithm) {
  std::vector<Element> elements;
  for (int64_t r = 0; r < 4; ++r) {
    for (int64_t c = 0; c < 4; ++c) {
      const double value = weight[row + r][col + c];
      const bool is_signed = algorithm == TileAlgorithm::kLargestValuesGreedy;
      elements.push_back({is_signed ? value : std::abs(value), r, c});
    }
  }
  if (algorithm == TileAlgorithm::kOptimal) {
    return optimal_tile(elements);
  }
  return greedy_tile(elements, algorithm == TileAlgorithm::kCausal1122 ? std::array{1, 1, 2, 2}
                                                                       : std::array{2, 2, 2, 2});
}

const at::Tensor& bit_values() {
  static const at::Tensor values = at::tensor({1, 2, 4, 8, 16, 32, 64, 128}, at::kByte);
  return values;
}

}  // namespace

bool has_semi_structured_shape(int64_t rows, int64_t cols) {
  return rows % 4 == 0 && cols % 8 == 0;
}

at::Tensor semi_structured_mask(const at::Tensor& weight, TileAlgorithm algorithm) {
  check_matrix(weight);
  const at::Tensor matrix = weight.contiguous();
  const int64_t cols = matrix.size(1);
  const at::Tensor mask = at::empty({matrix.size(0), cols / 8}, matrix.options().dtype(at::kByte));
  nn::with_element_type(matrix, [&](auto element) {
    using T = decltype(element);
    if (matrix.is_cuda()) {
      const cuda::LaunchScope scope(matrix);
      kernels::tile_mask<T>(const_pointer<T>(matrix), matrix.size(0), cols, algorithm,
                            mutable_pointer<uint8_t>(mask), nullptr, scope.stream());
      return;
    }
    for_strips(matrix.size(0), cols, [&](int64_t row, int64_t count) {
      kernels::tile_mask(const_pointer<T>(matrix) + row * cols, cols, count, cols, algorithm,
                         mutable_pointer<uint8_t>(mask) + row * (cols / 8));
    });
  });
  return mask;
}

at::Tensor semi_structured_mask_reference(const at::Tensor& weight, TileAlgorithm algorithm) {
  check_matrix(weight);
  check_cpu(weight);
  const at::Tensor matrix = weight.to(at::kDouble).contiguous();
  const auto values = matrix.accessor<double, 2>();
  const at::Tensor keep = at::zeros(matrix.sizes(), at::kBool);
  auto kept = keep.accessor<bool, 2>();
  for (int64_t row = 0; row < matrix.size(0); row += 4) {
    for (int64_t col = 0; col < matrix.size(1); col += 4) {
      const uint32_t mask = tile_reference(values, row, col, algorithm);
      for (int64_t i = 0; i < 16; ++i) {
        kept[row + i / 4][col + i % 4] = (mask >> i & 1U) != 0;
      }
    }
  }
  return pack_mask(keep);
}

at::Tensor apply_mask(const at::Tensor& weight, const at::Tensor& mask) {
  check_matrix(weight);
  check_mask(mask, weight.size(0), weight.size(1));
  const at::Tensor matrix = weight.contiguous();
  const at::Tensor out = at::empty_like(matrix);
  nn::with_element_type(matrix, [&](auto element) {
    using T = decltype(element);
    if (matrix.is_cuda()) {
      const cuda::LaunchScope scope(matrix);
      kernels::apply_mask<T>(const_pointer<T>(matrix), const_pointer<uint8_t>(mask),
                             mutable_pointer<T>(out), matrix.numel(), scope.stream());
      return;
    }
    const int64_t cols = matrix.size(1);
    for_strips(matrix.size(0), cols, [&](int64_t row, int64_t count) {
      kernels::apply_mask(const_pointer<T>(matrix) + row * cols,
                          const_pointer<uint8_t>(mask) + row * (cols / 8),
                          mutable_pointer<T>(out) + row * cols, count * cols);
    });
  });
  return out;
}

at::Tensor pack_mask(const at::Tensor& keep) {
  TORCH_CHECK(keep.dim() == 2 && keep.scalar_type() == at::kBool && keep.size(1) % 8 == 0,
              "expected bool [rows, cols] with cols a multiple of 8, got ", keep.dtype(), " ",
              keep.sizes());
  return keep.to(at::kByte)
      .view({keep.size(0), keep.size(1) / 8, 8})
      .mul(bit_values())
      .sum(2, /*keepdim=*/false, at::kByte);
}

at::Tensor unpack_mask(const at::Tensor& mask) {
  return mask.unsqueeze(2).bitwise_and(bit_values()).ne(0).view({mask.size(0), mask.size(1) * 8});
}

SemiStructuredTensor compress(const at::Tensor& weight, const at::Tensor& mask) {
  check_matrix(weight);
  check_cpu(weight);
  check_mask(mask, weight.size(0), weight.size(1));
  const at::Tensor matrix = weight.contiguous();
  const int64_t cols = matrix.size(1);
  const SemiStructuredTensor packed{at::empty({matrix.size(0), cols / 2}, matrix.options()),
                                    at::empty_like(mask)};
  std::atomic<bool> is_valid = true;
  nn::with_element_type(matrix, [&](auto element) {
    using T = decltype(element);
    for_strips(matrix.size(0), cols, [&](int64_t row, int64_t count) {
      if (!kernels::compress(const_pointer<T>(matrix) + row * cols,
                             const_pointer<uint8_t>(mask) + row * (cols / 8),
                             mutable_pointer<T>(packed.values) + row * (cols / 2),
                             mutable_pointer<uint8_t>(packed.metadata) + row * (cols / 8),
                             count * cols)) {
        is_valid = false;
      }
    });
  });
  TORCH_CHECK(is_valid.load(),
              "expected a mask that keeps at most two of each four columns, got more");
  return packed;
}

SemiStructuredTensor prune_and_compress(const at::Tensor& weight, TileAlgorithm algorithm) {
  check_matrix(weight);
  check_cpu(weight);
  const at::Tensor matrix = weight.contiguous();
  const int64_t cols = matrix.size(1);
  const SemiStructuredTensor packed{
      at::empty({matrix.size(0), cols / 2}, matrix.options()),
      at::empty({matrix.size(0), cols / 8}, matrix.options().dtype(at::kByte))};
  nn::with_element_type(matrix, [&](auto element) {
    using T = decltype(element);
    for_strips(matrix.size(0), cols, [&](int64_t first, int64_t count) {
      std::vector<uint8_t> mask(4 * cols / 8);
      // A strip of four rows is still in the cache when it is compressed.
      for (int64_t row = first; row < first + count; row += 4) {
        const T* strip = const_pointer<T>(matrix) + row * cols;
        kernels::tile_mask(strip, cols, 4, cols, algorithm, mask.data());
        kernels::compress(strip, mask.data(), mutable_pointer<T>(packed.values) + row * (cols / 2),
                          mutable_pointer<uint8_t>(packed.metadata) + row * (cols / 8), 4 * cols);
      }
    });
  });
  return packed;
}

at::Tensor decompress(const SemiStructuredTensor& packed) {
  const int64_t rows = packed.values.size(0);
  const int64_t cols = packed.values.size(1) * 2;
  check_mask(packed.metadata, rows, cols);
  const at::Tensor out = at::empty({rows, cols}, packed.values.options());
  nn::with_element_type(out, [&](auto element) {
    using T = decltype(element);
    for_strips(rows, cols, [&](int64_t row, int64_t count) {
      kernels::decompress(const_pointer<T>(packed.values) + row * (cols / 2),
                          const_pointer<uint8_t>(packed.metadata) + row * (cols / 8),
                          mutable_pointer<T>(out) + row * cols, count * cols);
    });
  });
  return out;
}

at::Tensor semi_structured_matvec(const at::Tensor& x, const SemiStructuredTensor& weight,
                                  const at::Tensor& bias) {
  check_operands(x, weight, bias);
  const int64_t rows = weight.values.size(0);
  const int64_t cols = weight.values.size(1) * 2;
  const at::Tensor input = x.contiguous();
  const at::Tensor terms = bias.defined() ? bias.contiguous() : bias;
  const at::Tensor y = at::empty({x.size(0), rows}, x.options());
  for_strips(rows, cols, [&](int64_t row, int64_t count) {
    const kernels::SemiStructuredRows strip{
        const_pointer<uint16_t>(weight.values) + row * (cols / 2),
        const_pointer<uint8_t>(weight.metadata) + row * (cols / 8), count, cols};
    kernels::semi_structured_matvec(
        strip, const_pointer<uint16_t>(input), x.size(0),
        terms.defined() ? const_pointer<uint16_t>(terms) + row : nullptr,
        mutable_pointer<uint16_t>(y) + row, rows);
  });
  return y;
}

at::Tensor semi_structured_matmul(const at::Tensor& x, const SemiStructuredTensor& weight,
                                  const at::Tensor& bias) {
  check_operands(x, weight, bias);
  const int64_t rows = weight.values.size(0);
  const int64_t strip_rows = std::max<int64_t>(4, kStripElements / x.size(1) / 4 * 4);
  const at::Tensor y = at::empty({x.size(0), rows}, x.options());
  for (int64_t row = 0; row < rows; row += strip_rows) {
    const int64_t count = std::min(strip_rows, rows - row);
    const at::Tensor strip =
        decompress({weight.values.narrow(0, row, count), weight.metadata.narrow(0, row, count)});
    y.narrow(1, row, count)
        .copy_(at::linear(
            x, strip, bias.defined() ? std::optional(bias.narrow(0, row, count)) : std::nullopt));
  }
  return y;
}

}  // namespace narrowgauge::sparsity
