#pragma once

#include <cstdint>

namespace narrowgauge::nn::kernels {

// out = sum over i < count of rows[order[i]], added in that order in fp32, rounded once.
// T is float, or uint16_t for bf16. rows: [*, dim]; out: [dim]; scratch: [dim] fp32.
void sum_rows(const float* rows, const int64_t* order, int64_t count, int64_t dim, float* scratch,
              float* out);
void sum_rows(const uint16_t* rows, const int64_t* order, int64_t count, int64_t dim,
              float* scratch, uint16_t* out);

}  // namespace narrowgauge::nn::kernels
