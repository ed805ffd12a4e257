#include "nn/kernels/embedding_lookup.h"

#include "nn/kernels/vector_math.h"

// Traffic in bf16, bytes an element: 2 for each row read and 2 for the row written; the sum stays
// in the first-level cache.

namespace narrowgauge::nn::kernels {
namespace {

template <typename T>
NG_INLINE void sum(const T* __restrict rows, const int64_t* order, int64_t count, int64_t dim,
                   float* __restrict scratch, T* __restrict out) {
  for (int64_t i = 0; i < dim; ++i) {
    scratch[i] = 0;
  }
  for (int64_t n = 0; n < count; ++n) {
    const T* __restrict row = rows + order[n] * dim;
    for (int64_t i = 0; i < dim; ++i) {
      scratch[i] += to_float(row[i]);
    }
  }
  for (int64_t i = 0; i < dim; ++i) {
    out[i] = from_float<T>(scratch[i]);
  }
}

}  // namespace

NG_TARGET_CLONES void sum_rows(const float* rows, const int64_t* order, int64_t count, int64_t dim,
                               float* scratch, float* out) {
  sum(rows, order, count, dim, scratch, out);
}

NG_TARGET_CLONES void sum_rows(const uint16_t* rows, const int64_t* order, int64_t count,
                               int64_t dim, float* scratch, uint16_t* out) {
  sum(rows, order, count, dim, scratch, out);
}

}  // namespace narrowgauge::nn::kernels
