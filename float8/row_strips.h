#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstdint>

#include "float8/kernels/cast.h"
#include "float8/scaling.h"

// How the CPU functions of float8/ walk over a matrix: by strips of rows that stay in the cache, so
// that a strip whose scales are its own is read from memory once. Strips depend on the shape alone.
namespace narrowgauge::float8 {

inline bool runs_cpu_kernel(const at::Tensor& x) {
  return x.is_cpu() && x.numel() > 0 &&
         (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16 ||
          x.scalar_type() == at::kHalf);
}

inline kernels::Float8Format kernel_format(at::ScalarType dtype) {
  return dtype == at::kFloat8_e4m3fn ? kernels::Float8Format::kE4M3 : kernels::Float8Format::kE5M2;
}

inline constexpr int64_t kStripRows = 128;  // a multiple of every block

// Where the scales of a matrix lie. REQUIRES: the matrix is not empty.
struct ScaleGrid {
  ScaleGrid(ScalingGranularity granularity, int64_t dim, at::IntArrayRef sizes)
      : group(group_shape(granularity, dim, sizes)),
        rows((sizes[0] + group.rows - 1) / group.rows),
        cols((sizes[1] + group.cols - 1) / group.cols) {}

  kernels::ScaleGroups groups() const { return {group.rows, group.cols}; }
  // Of the first scale that a row uses.
  int64_t offset(int64_t row) const { return row / group.rows * cols; }
  // Whether no group reaches from one strip into another.
  bool fits_strips() const { return kStripRows % group.rows == 0; }

  GroupShape group;
  int64_t rows;  // scales, not elements
  int64_t cols;
};

// x contiguous, in a dtype that kernels read: fp16 becomes fp32, which is exact.
inline at::Tensor readable_by_kernels(const at::Tensor& x) {
  const at::Tensor values = x.detach();
  return (x.scalar_type() == at::kHalf ? values.to(at::kFloat) : values).contiguous();
}

inline int64_t num_strips(int64_t rows) { return (rows + kStripRows - 1) / kStripRows; }

// Calls strip(index, first_row, num_rows) for each strip, from several threads.
template <typename Strip>
void for_each_strip(int64_t rows, int64_t cols, const Strip& strip) {
  constexpr int64_t kGrainElements = 1 << 15;
  const int64_t grain = std::max<int64_t>(1, kGrainElements / (kStripRows * cols));
  at::parallel_for(0, num_strips(rows), grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      strip(i, i * kStripRows, std::min(kStripRows, rows - i * kStripRows));
    }
  });
}

// Zeros for the amax of every group, or of every strip's part of it where groups reach over
// several.
inline at::Tensor empty_strip_amax(const at::Tensor& x, const ScaleGrid& grid) {
  return at::zeros({grid.fits_strips() ? grid.rows : num_strips(x.size(0)), grid.cols},
                   x.options().dtype(at::kFloat));
}

// Where the groups of a strip begin in it.
inline float* strip_amax(const at::Tensor& amax, const ScaleGrid& grid, int64_t index,
                         int64_t row) {
  return amax.mutable_data_ptr<float>() +
         (grid.fits_strips() ? grid.offset(row) : index * grid.cols);
}

// [grid.rows, grid.cols]; NaN in any part stays.
inline at::Tensor merged_amax(const at::Tensor& amax, const ScaleGrid& grid) {
  return grid.fits_strips() ? amax : amax.amax(0, /*keepdim=*/true);
}

}  // namespace narrowgauge::float8
