#include "nn/kernels/rms_norm.h"

#include <cmath>

#include "nn/kernels/vector_math.h"

// Traffic in bf16, bytes an element: forward 4 (x read, y written; the second pass over a row finds
// it in the first-level cache), with addition 8, backward 6 (8 with grad_h).

namespace narrowgauge::nn::kernels {
namespace {

template <typename T>
NG_INLINE float rstd_of(const T* x, int64_t dim, float eps) {
  const float sum = sum_of(dim, [=](int64_t i) NG_INLINE_LAMBDA {
    const float value = to_float(x[i]);
    return value * value;
  });
  return 1.0F / std::sqrt(sum / static_cast<float>(dim) + eps);
}

template <typename T>
NG_INLINE void scale_row(const T* __restrict x, const float* __restrict weight, T* __restrict y,
                         float rstd, int64_t dim) {
  for (int64_t i = 0; i < dim; ++i) {
    y[i] = from_float<T>(to_float(x[i]) * rstd * weight[i]);
  }
}

template <typename T>
NG_INLINE void norm_rows(const T* x, const float* weight, T* y, float* rstd, int64_t rows,
                         int64_t dim, float eps) {
  for (int64_t row = 0; row < rows; ++row) {
    rstd[row] = rstd_of(x + row * dim, dim, eps);
    scale_row(x + row * dim, weight, y + row * dim, rstd[row], dim);
  }
}

template <typename T>
NG_INLINE void add_row(const T* __restrict a, const T* __restrict b, T* __restrict h, int64_t dim) {
  for (int64_t i = 0; i < dim; ++i) {
    h[i] = from_float<T>(to_float(a[i]) + to_float(b[i]));
  }
}

template <typename T>
NG_INLINE void add_norm_rows(const T* residual, const T* x, const float* weight, T* h, T* y,
                             float* rstd, int64_t rows, int64_t dim, float eps) {
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = row * dim;
    add_row(residual + at, x + at, h + at, dim);
    rstd[row] = rstd_of(h + at, dim, eps);
    scale_row(h + at, weight, y + at, rstd[row], dim);
  }
}

template <typename T, bool kHasGradH>
NG_INLINE void backward_row(const T* __restrict grad_y, const T* __restrict grad_h,
                            const T* __restrict x, const float* __restrict weight, float rstd,
                            T* __restrict grad_x, float* __restrict grad_weight, int64_t dim) {
  const float dot = sum_of(dim, [=](int64_t i) NG_INLINE_LAMBDA {
    return to_float(grad_y[i]) * weight[i] * to_float(x[i]);
  });
  const float mean = dot * rstd * rstd / static_cast<float>(dim);
  for (int64_t i = 0; i < dim; ++i) {
    const float g = to_float(grad_y[i]);
    const float value = to_float(x[i]);
    float grad = rstd * (g * weight[i] - value * mean);
    if constexpr (kHasGradH) {
      grad += to_float(grad_h[i]);
    }
    grad_weight[i] += g * (value * rstd);
    grad_x[i] = from_float<T>(grad);
  }
}

template <typename T>
NG_INLINE void backward_rows(const T* grad_y, const T* grad_h, const T* x, const float* weight,
                             const float* rstd, T* grad_x, float* grad_weight, int64_t rows,
                             int64_t dim) {
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = row * dim;
    if (grad_h != nullptr) {
      backward_row<T, true>(grad_y + at, grad_h + at, x + at, weight, rstd[row], grad_x + at,
                            grad_weight, dim);
    } else {
      backward_row<T, false>(grad_y + at, nullptr, x + at, weight, rstd[row], grad_x + at,
                             grad_weight, dim);
    }
  }
}

}  // namespace

NG_TARGET_CLONES void rms_norm(const float* x, const float* weight, float* y, float* rstd,
                               int64_t rows, int64_t dim, float eps) {
  norm_rows(x, weight, y, rstd, rows, dim, eps);
}

NG_TARGET_CLONES void rms_norm(const uint16_t* x, const float* weight, uint16_t* y, float* rstd,
                               int64_t rows, int64_t dim, float eps) {
  norm_rows(x, weight, y, rstd, rows, dim, eps);
}

NG_TARGET_CLONES void add_rms_norm(const float* residual, const float* x, const float* weight,
                                   float* h, float* y, float* rstd, int64_t rows, int64_t dim,
                                   float eps) {
  add_norm_rows(residual, x, weight, h, y, rstd, rows, dim, eps);
}

NG_TARGET_CLONES void add_rms_norm(const uint16_t* residual, const uint16_t* x, const float* weight,
                                   uint16_t* h, uint16_t* y, float* rstd, int64_t rows, int64_t dim,
                                   float eps) {
  add_norm_rows(residual, x, weight, h, y, rstd, rows, dim, eps);
}

NG_TARGET_CLONES void rms_norm_backward(const float* grad_y, const float* grad_h, const float* x,
                                        const float* weight, const float* rstd, float* grad_x,
                                        float* grad_weight, int64_t rows, int64_t dim) {
  backward_rows(grad_y, grad_h, x, weight, rstd, grad_x, grad_weight, rows, dim);
}

NG_TARGET_CLONES void rms_norm_backward(const uint16_t* grad_y, const uint16_t* grad_h,
                                        const uint16_t* x, const float* weight, const float* rstd,
                                        uint16_t* grad_x, float* grad_weight, int64_t rows,
                                        int64_t dim) {
  backward_rows(grad_y, grad_h, x, weight, rstd, grad_x, grad_weight, rows, dim);
}

}  // namespace narrowgauge::nn::kernels
