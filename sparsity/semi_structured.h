#pragma once

#include <ATen/core/Tensor.h>

#include "sparsity/kernels/tile_mask.h"

// 2:4 ("semi-structured") sparsity of matrices: which elements stay, and the packed form of those
// that do. Matrices are [rows, cols], fp32 or bf16, on the CPU or (masks and their application) on
// a GPU. A mask is uint8 [rows, cols / 8]: bit j of byte i of a row stands for column 8 i + j, set
// where the element is kept. Throws c10::Error for other dtypes and sizes.
namespace narrowgauge::sparsity {

using kernels::TileAlgorithm;

// Whether a matrix of these sizes can be masked: rows % 4 == 0 and cols % 8 == 0.
bool has_semi_structured_shape(int64_t rows, int64_t cols);

// The mask that is 2:4 along both dims (4x4 tiles), by `algorithm`.
at::Tensor semi_structured_mask(const at::Tensor& weight, TileAlgorithm algorithm);

// The same from plain expressions, element by element: what the kernels are tested against.
at::Tensor semi_structured_mask_reference(const at::Tensor& weight, TileAlgorithm algorithm);

// weight where `mask` keeps it, else 0.
at::Tensor apply_mask(const at::Tensor& weight, const at::Tensor& mask);

// bool [rows, cols] -> mask, and back.
at::Tensor pack_mask(const at::Tensor& keep);
at::Tensor unpack_mask(const at::Tensor& mask);

// values: [rows, cols / 2] of the matrix's dtype; metadata: uint8 [rows, cols / 8], exactly two
// bits set in each half byte. 9/16 of the bytes of bf16.
struct SemiStructuredTensor {
  at::Tensor values;
  at::Tensor metadata;
};

// Throws if `mask` keeps more than two of any four columns. A group of four of which it keeps fewer
// is filled with zeros.
SemiStructuredTensor compress(const at::Tensor& weight, const at::Tensor& mask);

// semi_structured_mask and compress in one pass over the weight.
SemiStructuredTensor prune_and_compress(const at::Tensor& weight, TileAlgorithm algorithm);

at::Tensor decompress(const SemiStructuredTensor& packed);

// x W^T + bias without unpacking W in memory: for few rows of x, where reading W is the cost. x:
// [n, cols] bf16 -> [n, rows] bf16; bias: bf16 [rows] or undefined. Sums in fp32, rounded once.
at::Tensor semi_structured_matvec(const at::Tensor& x, const SemiStructuredTensor& weight,
                                  const at::Tensor& bias = {});

// The same for many rows of x: a strip of W that fits in the cache is unpacked at a time.
at::Tensor semi_structured_matmul(const at::Tensor& x, const SemiStructuredTensor& weight,
                                  const at::Tensor& bias = {});

}  // namespace narrowgauge::sparsity
