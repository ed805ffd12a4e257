#include "nn/kernels/attention_backward.h"
#include "nn/kernels/attention_forward.h"
#include "nn/kernels/attention_tiles.h"

namespace narrowgauge::nn::kernels {
namespace {

// fp32 throughout; a Word is a float, so row pairs are rows.
struct Singles {
  using Element = float;
  using Word = float;
  static constexpr int64_t kPair = 1;

  template <int64_t kARow, int64_t kAStep, int kVectors>
  NG_INLINE static void multiply(const float* a, const float* b, int64_t b_step, int64_t steps,
                                 float* c, int64_t c_row, bool add) {
    constexpr int64_t kRows = 4;  // 8 registers of 64 bytes, 16 of 32
    for (int64_t row = 0; row < attention::kTileRows; row += kRows) {
      multiply_rows<kRows, kARow, kAStep, kVectors>(a + row * kARow, b, b_step, steps,
                                                    c + row * c_row, c_row, add);
    }
  }

  NG_INLINE static void pair_of_rows(const float* __restrict rows, int64_t /*row_stride*/,
                                     int64_t columns, float* __restrict out) {
    for (int64_t i = 0; i < columns; ++i) {
      out[i] = rows[i];
    }
  }

  NG_INLINE static void transpose_panel(const float* rows, int64_t row_stride, int64_t words,
                                        float* panel) {
    for (int64_t word = 0; word < words; ++word) {
      for (int64_t row = 0; row < attention::kPanel; ++row) {
        panel[word * attention::kPanel + row] = rows[row * row_stride + word];
      }
    }
  }

  NG_INLINE static void narrow_row(const float* __restrict row, int64_t count,
                                   float* __restrict out) {
    for (int64_t i = 0; i < count; ++i) {
      out[i] = row[i];
    }
  }

  NG_INLINE static void narrow_row_pairs(const float* rows, int64_t row_stride, int64_t count,
                                         float* out, int64_t out_stride) {
    for (int64_t row = 0; row < attention::kTileRows; ++row) {
      narrow_row(rows + row * row_stride, count, out + row * out_stride);
    }
  }

 private:
  template <int64_t kRows, int64_t kARow, int64_t kAStep, int kVectors>
  NG_INLINE static void multiply_rows(const float* a, const float* b, int64_t b_step, int64_t steps,
                                      float* c, int64_t c_row, bool add) {
    // Registers by name: GCC keeps an array of arrays in memory.
    typedef float Vector __attribute__((vector_size(64), aligned(4), may_alias));
    Vector sum[kRows][kVectors];
#pragma GCC unroll 4
    for (int64_t row = 0; row < kRows; ++row) {
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) {
        sum[row][v] = add ? *reinterpret_cast<const Vector*>(c + row * c_row + 16 * v) : Vector{};
      }
    }
    for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 4
      for (int64_t row = 0; row < kRows; ++row) {
#pragma GCC unroll 2
        for (int64_t v = 0; v < kVectors; ++v) {
          sum[row][v] += a[row * kARow] * *reinterpret_cast<const Vector*>(b + 16 * v);
        }
      }
      a += kAStep;
      b += b_step;
    }
#pragma GCC unroll 4
    for (int64_t row = 0; row < kRows; ++row) {
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) {
        *reinterpret_cast<Vector*>(c + row * c_row + 16 * v) = sum[row][v];
      }
    }
  }
};

int64_t packed_size(const AttentionShape& shape) {
  const attention::Geometry<Singles> geometry(shape);
  return shape.batch * shape.num_kv_heads * (geometry.panels_size() + geometry.row_pairs_size());
}

int64_t forward_scratch_size(const AttentionShape& shape) {
  return attention::ForwardScratch<Singles>::size(attention::Geometry<Singles>(shape));
}

int64_t backward_scratch_size(const AttentionShape& shape) {
  return attention::BackwardScratch<Singles>::size(attention::Geometry<Singles>(shape));
}

}  // namespace

#define NG_PORTABLE_ATTENTION(Name, T)                                                            \
  NG_TARGET_CLONES void pack_##Name(const AttentionInput<T>& input, float* packed, int64_t begin, \
                                    int64_t end) {                                                \
    attention::pack_keys_values<Singles>(input, packed, begin, end);                              \
  }                                                                                               \
  NG_TARGET_CLONES void forward_##Name(const AttentionInput<T>& input, const float* packed,       \
                                       T* out, float* log_sum_exp, float* scratch, int64_t begin, \
                                       int64_t end) {                                             \
    attention::forward<Singles>(input, packed, out, log_sum_exp, scratch, begin, end);            \
  }                                                                                               \
  NG_TARGET_CLONES void backward_##Name(const AttentionInput<T>& input,                           \
                                        const AttentionGradients<T>& gradients, float* scratch,   \
                                        int64_t begin, int64_t end) {                             \
    attention::backward<Singles>(input, gradients, scratch, begin, end);                          \
  }                                                                                               \
  AttentionKernel<T> portable_attention_##Name() {                                                \
    return {packed_size,    pack_##Name,           forward_scratch_size,                          \
            forward_##Name, backward_scratch_size, backward_##Name};                              \
  }

NG_PORTABLE_ATTENTION(float, float)
NG_PORTABLE_ATTENTION(bf16, uint16_t)

#undef NG_PORTABLE_ATTENTION

}  // namespace narrowgauge::nn::kernels
