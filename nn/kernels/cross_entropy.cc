#include "nn/kernels/cross_entropy.h"

#include <cmath>

#include "nn/kernels/vector_math.h"

// Traffic in bf16, bytes a logit: forward 2 (the second pass over a row finds it in a cache),
// backward 4, both in one 4. One exponential a logit in each.

namespace narrowgauge::nn::kernels {
namespace {

// Two parts of logsumexp, apart so that the loss of a likely target does not cancel.
struct LogSumExp {
  float largest;
  float log_sum;  // ln sum exp(logit - largest)
};

// A NaN is passed over by the maximum and reaches the sum.
template <typename T>
NG_INLINE LogSumExp log_sum_exp_of(const T* __restrict logits, int64_t vocab) {
  const float largest =
      max_of(vocab, [=](int64_t i) NG_INLINE_LAMBDA { return to_float(logits[i]); });
  const float sum = sum_of(
      vocab, [=](int64_t i) NG_INLINE_LAMBDA { return exp_f32(to_float(logits[i]) - largest); });
  return {largest, std::log(sum)};
}

// log_sum_exp may be null.
template <typename T>
NG_INLINE void forward_rows(const T* logits, const int64_t* targets, float* log_sum_exp,
                            float* loss, int64_t rows, int64_t vocab, int64_t ignore_index) {
  for (int64_t row = 0; row < rows; ++row) {
    LogSumExp parts{0, 0};
    loss[row] = 0;
    if (targets[row] != ignore_index) {
      const T* of_row = logits + row * vocab;
      parts = log_sum_exp_of(of_row, vocab);
      loss[row] = parts.log_sum + (parts.largest - to_float(of_row[targets[row]]));
    }
    if (log_sum_exp != nullptr) {
      log_sum_exp[row] = parts.largest + parts.log_sum;
    }
  }
}

// grad may be logits.
template <typename T>
NG_INLINE void gradient_row(const T* logits, int64_t target, float log_sum_exp, float scale,
                            T* grad, int64_t vocab) {
  // Again from fp32, so that softmax - 1 is rounded once.
  const float probability = std::exp(to_float(logits[target]) - log_sum_exp);
#pragma GCC ivdep
  for (int64_t i = 0; i < vocab; ++i) {
    grad[i] = from_float<T>(exp_f32(to_float(logits[i]) - log_sum_exp) * scale);
  }
  grad[target] = from_float<T>((probability - 1.0F) * scale);
}

template <typename T>
NG_INLINE void loss_to_gradient_rows(T* logits, const int64_t* targets, float* loss, float scale,
                                     int64_t rows, int64_t vocab, int64_t ignore_index) {
  for (int64_t row = 0; row < rows; ++row) {
    T* of_row = logits + row * vocab;
    const int64_t target = targets[row];
    loss[row] = 0;
    if (target == ignore_index) {
      for (int64_t i = 0; i < vocab; ++i) {
        of_row[i] = 0;
      }
      continue;
    }
    const LogSumExp parts = log_sum_exp_of(of_row, vocab);
    loss[row] = parts.log_sum + (parts.largest - to_float(of_row[target]));
    gradient_row(of_row, target, parts.largest + parts.log_sum, scale, of_row, vocab);
  }
}

template <typename T>
NG_INLINE void backward_rows(const T* logits, const int64_t* targets, const float* log_sum_exp,
                             float grad_loss, T* grad_logits, int64_t rows, int64_t vocab,
                             int64_t ignore_index) {
  for (int64_t row = 0; row < rows; ++row) {
    const T* of_row = logits + row * vocab;
    T* grad = grad_logits + row * vocab;
    const int64_t target = targets[row];
    if (target == ignore_index) {
      for (int64_t i = 0; i < vocab; ++i) {
        grad[i] = 0;
      }
      continue;
    }
    gradient_row(of_row, target, log_sum_exp[row], grad_loss, grad, vocab);
  }
}

}  // namespace

NG_TARGET_CLONES void cross_entropy(const float* logits, const int64_t* targets, float* log_sum_exp,
                                    float* loss, int64_t rows, int64_t vocab,
                                    int64_t ignore_index) {
  forward_rows(logits, targets, log_sum_exp, loss, rows, vocab, ignore_index);
}

NG_TARGET_CLONES void cross_entropy(const uint16_t* logits, const int64_t* targets,
                                    float* log_sum_exp, float* loss, int64_t rows, int64_t vocab,
                                    int64_t ignore_index) {
  forward_rows(logits, targets, log_sum_exp, loss, rows, vocab, ignore_index);
}

NG_TARGET_CLONES void cross_entropy_loss(const float* logits, const int64_t* targets, float* loss,
                                         int64_t rows, int64_t vocab, int64_t ignore_index) {
  forward_rows(logits, targets, nullptr, loss, rows, vocab, ignore_index);
}

NG_TARGET_CLONES void cross_entropy_loss(const uint16_t* logits, const int64_t* targets,
                                         float* loss, int64_t rows, int64_t vocab,
                                         int64_t ignore_index) {
  forward_rows(logits, targets, nullptr, loss, rows, vocab, ignore_index);
}

NG_TARGET_CLONES void cross_entropy_to_gradient(float* logits, const int64_t* targets, float* loss,
                                                float grad_loss, int64_t rows, int64_t vocab,
                                                int64_t ignore_index) {
  loss_to_gradient_rows(logits, targets, loss, grad_loss, rows, vocab, ignore_index);
}

NG_TARGET_CLONES void cross_entropy_to_gradient(uint16_t* logits, const int64_t* targets,
                                                float* loss, float grad_loss, int64_t rows,
                                                int64_t vocab, int64_t ignore_index) {
  loss_to_gradient_rows(logits, targets, loss, grad_loss, rows, vocab, ignore_index);
}

NG_TARGET_CLONES void cross_entropy_backward(const float* logits, const int64_t* targets,
                                             const float* log_sum_exp, float grad_loss,
                                             float* grad_logits, int64_t rows, int64_t vocab,
                                             int64_t ignore_index) {
  backward_rows(logits, targets, log_sum_exp, grad_loss, grad_logits, rows, vocab, ignore_index);
}

NG_TARGET_CLONES void cross_entropy_backward(const uint16_t* logits, const int64_t* targets,
                                             const float* log_sum_exp, float grad_loss,
                                             uint16_t* grad_logits, int64_t rows, int64_t vocab,
                                             int64_t ignore_index) {
  backward_rows(logits, targets, log_sum_exp, grad_loss, grad_logits, rows, vocab, ignore_index);
}

}  // namespace narrowgauge::nn::kernels
