#pragma once

#include <cstdint>

// T is float, or uint16_t for bf16. All matrices are [rows, dim], contiguous; weight is [dim].
namespace narrowgauge::nn::kernels {

// y = x * rstd * weight; rstd: [rows] out.
void rms_norm(const float* x, const float* weight, float* y, float* rstd, int64_t rows, int64_t dim,
              float eps);
void rms_norm(const uint16_t* x, const float* weight, uint16_t* y, float* rstd, int64_t rows,
              int64_t dim, float eps);

// h = residual + x, rounded; y as rms_norm of h.
void add_rms_norm(const float* residual, const float* x, const float* weight, float* h, float* y,
                  float* rstd, int64_t rows, int64_t dim, float eps);
void add_rms_norm(const uint16_t* residual, const uint16_t* x, const float* weight, uint16_t* h,
                  uint16_t* y, float* rstd, int64_t rows, int64_t dim, float eps);

// grad_x = rstd (grad_y weight - x rstd^2 mean(grad_y weight x)) + grad_h, rounded once;
// grad_weight: [dim] in/out, gets the sum over rows of grad_y x rstd added.
// grad_h: what else flows into x (add_rms_norm's first output), or null.
void rms_norm_backward(const float* grad_y, const float* grad_h, const float* x,
                       const float* weight, const float* rstd, float* grad_x, float* grad_weight,
                       int64_t rows, int64_t dim);
void rms_norm_backward(const uint16_t* grad_y, const uint16_t* grad_h, const uint16_t* x,
                       const float* weight, const float* rstd, uint16_t* grad_x, float* grad_weight,
                       int64_t rows, int64_t dim);

}  // namespace narrowgauge::nn::kernels
