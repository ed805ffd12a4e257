#include "nn/kernels/distillation.h"

#include <cmath>

#include "nn/kernels/vector_math.h"

// Exponentials a logit: the student's and the teacher's for logsumexp, both again for the
// gradient, and where the temperature is not 1 the student's at 1 twice more.

namespace narrowgauge::nn::kernels {
namespace {

// logsumexp(logits * inverse) in two parts: cold logits are large.
struct LogSumExp {
  float largest;  // of logits * inverse
  float log_sum;
};

template <typename T>
NG_INLINE LogSumExp log_sum_exp_of(const T* __restrict logits, float inverse, int64_t vocab) {
  const float largest =
      max_of(vocab, [=](int64_t i) NG_INLINE_LAMBDA { return to_float(logits[i]) * inverse; });
  const float sum = sum_of(vocab, [=](int64_t i) NG_INLINE_LAMBDA {
    return exp_f32(to_float(logits[i]) * inverse - largest);
  });
  return {largest, std::log(sum)};
}

// sum p (ln p - ln q), both at one temperature. Logarithms are subtracted before they are weighed,
// so that two like distributions do not cancel.
template <typename T>
NG_INLINE float divergence(const T* __restrict student, const T* __restrict teacher, float inverse,
                           LogSumExp of_student, LogSumExp of_teacher, int64_t vocab) {
  const float largest = of_teacher.largest;
  const float log_sum = of_teacher.log_sum;
  const float offset =
      (of_student.largest - of_teacher.largest) + (of_student.log_sum - of_teacher.log_sum);
  return sum_of(vocab, [=](int64_t i) NG_INLINE_LAMBDA {
    const float t = to_float(teacher[i]) * inverse;
    const float p = exp_f32(t - largest - log_sum);
    // A token that the teacher rules out (-inf) adds nothing.
    return p == 0.0F ? 0.0F : p * (t - to_float(student[i]) * inverse + offset);
  });
}

// Of a row: [hard (softmax(z) - onehot) + soft T (softmax(z / T) - softmax(t / T))] scale.
template <typename T>
NG_INLINE void gradient_row(T* __restrict student, const T* __restrict teacher, int64_t target,
                            DistillationTerms terms, LogSumExp hard, LogSumExp soft,
                            LogSumExp of_teacher, int64_t vocab) {
  const float inverse = 1.0F / terms.temperature;
  const float hard_scale = terms.hard * terms.scale;
  const float soft_scale = terms.soft * terms.temperature * terms.scale;
  // In fp32 and rounded once, as all others.
  const float z = to_float(student[target]);
  const float p = std::exp(z - hard.largest - hard.log_sum) - 1.0F;
  const float q = std::exp(z * inverse - soft.largest - soft.log_sum);
  const float r =
      std::exp(to_float(teacher[target]) * inverse - of_teacher.largest - of_teacher.log_sum);
#pragma GCC ivdep
  for (int64_t i = 0; i < vocab; ++i) {
    const float x = to_float(student[i]);
    const float t = to_float(teacher[i]) * inverse;
    const float here = exp_f32(x * inverse - soft.largest - soft.log_sum);
    const float there = exp_f32(t - of_teacher.largest - of_teacher.log_sum);
    const float plain = exp_f32(x - hard.largest - hard.log_sum);
    student[i] = from_float<T>(hard_scale * plain + soft_scale * (here - there));
  }
  student[target] = from_float<T>(hard_scale * p + soft_scale * (q - r));
}

template <typename T>
NG_INLINE void to_gradient_rows(T* logits, const T* teacher, const int64_t* targets, float* loss,
                                DistillationTerms terms, int64_t rows, int64_t vocab,
                                int64_t ignore_index) {
  const float inverse = 1.0F / terms.temperature;
  for (int64_t row = 0; row < rows; ++row) {
    T* student = logits + row * vocab;
    const T* of_row = teacher + row * vocab;
    const int64_t target = targets[row];
    loss[row] = 0;
    if (target == ignore_index) {
      for (int64_t i = 0; i < vocab; ++i) {
        student[i] = 0;
      }
      continue;
    }
    const LogSumExp soft = log_sum_exp_of(student, inverse, vocab);
    const LogSumExp hard = inverse == 1.0F ? soft : log_sum_exp_of(student, 1.0F, vocab);
    const LogSumExp of_teacher = log_sum_exp_of(of_row, inverse, vocab);
    const float kl = divergence(student, of_row, inverse, soft, of_teacher, vocab);
    const float nll = hard.log_sum + (hard.largest - to_float(student[target]));
    loss[row] = terms.hard * nll + terms.soft * terms.temperature * terms.temperature * kl;
    gradient_row(student, of_row, target, terms, hard, soft, of_teacher, vocab);
  }
}

}  // namespace

NG_TARGET_CLONES void distillation_to_gradient(float* logits, const float* teacher,
                                               const int64_t* targets, float* loss,
                                               DistillationTerms terms, int64_t rows, int64_t vocab,
                                               int64_t ignore_index) {
  to_gradient_rows(logits, teacher, targets, loss, terms, rows, vocab, ignore_index);
}

NG_TARGET_CLONES void distillation_to_gradient(uint16_t* logits, const uint16_t* teacher,
                                               const int64_t* targets, float* loss,
                                               DistillationTerms terms, int64_t rows, int64_t vocab,
                                               int64_t ignore_index) {
  to_gradient_rows(logits, teacher, targets, loss, terms, rows, vocab, ignore_index);
}

}  // namespace narrowgauge::nn::kernels
