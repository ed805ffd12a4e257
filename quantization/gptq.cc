#include "quantization/gptq.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cholesky_inverse.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linalg_cholesky_ex.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "quantization/affine.h"

namespace narrowgauge::quantization {
namespace {

constexpr int64_t kBlockColumns = 128;  // whose updates to later columns are made together

// The lower Cholesky factor, or nothing where the matrix is not positive definite.
std::optional<at::Tensor> cholesky(const at::Tensor& matrix) {
  const auto [lower, info] = at::linalg_cholesky_ex(matrix);
  return info.item<int64_t>() == 0 ? std::optional(lower) : std::nullopt;
}

std::optional<at::Tensor> inverse_factor(const at::Tensor& hessian, double damping) {
  at::Tensor damped = hessian.clone();
  damped.diagonal().add_(hessian.diagonal().mean().mul(damping));
  const auto lower = cholesky(damped);
  if (!lower) {
    return std::nullopt;
  }
  const auto inverse_lower = cholesky(at::cholesky_inverse(*lower));
  return inverse_lower ? std::optional(inverse_lower->t()) : std::nullopt;
}

// Rounds the columns of one weight.
class ColumnRounding {
 public:
  ColumnRounding(const at::Tensor& weight, const GptqFactor& factor, const QuantizationSpec& spec,
                 bool scales_first)
      : spec_(spec),
        column_spec_(spec),
        factor_(factor),
        dtype_(weight.scalar_type()),
        group_(group_columns(spec, weight.size(1))),
        values_(weight.to(at::kFloat).index_select(1, factor.order)),
        codes_(at::empty({weight.size(1), weight.size(0)},
                         at::dtype(spec.is_signed ? at::kChar : at::kByte))) {
    column_spec_.granularity = Granularity::kPerRow;
    column_spec_.group_size = 0;
    column_spec_.float8_rows_first = false;
    qparams_.resize(weight.size(1) / group_);
    if (scales_first || spec.granularity != Granularity::kPerGroup) {
      for (size_t i = 0; i < qparams_.size(); ++i) {
        qparams_[i] = choose(weight.narrow(1, static_cast<int64_t>(i) * group_, group_));
      }
    }
  }

  QuantizedTensor run() {
    const int64_t cols = values_.size(1);
    const int64_t step = group_ < kBlockColumns ? kBlockColumns / group_ * group_
                         : spec_.granularity == Granularity::kPerGroup ? group_
                                                                       : kBlockColumns;
    for (int64_t begin = 0; begin < cols; begin += step) {
      const int64_t count = std::min(step, cols - begin);
      const at::Tensor errors = round_block(begin, count);
      const int64_t left = cols - begin - count;
      values_.narrow(1, begin + count, left)
          .addmm_(errors, factor_.upper.narrow(0, begin, count).narrow(1, begin + count, left), 1,
                  -1);
    }
    return result();
  }

 private:
  // Of [rows, columns of a group], in fp32 with the values that are stored.
  AffineQparams choose(const at::Tensor& group) const {
    const AffineQparams chosen = choose_qparams_affine(group.to(dtype_), column_spec_);
    return stored_qparams(chosen, column_spec_, dtype_);
  }

  const AffineQparams& qparams_of(int64_t place, const at::Tensor& block, int64_t i) {
    const int64_t column = order_[place];
    AffineQparams& qparams = qparams_[column / group_];
    if (!qparams.scale.defined()) {
      qparams = choose(block.narrow(1, i, group_));
    }
    return qparams;
  }

  // Errors of a block's columns, each divided by its diagonal: [rows, count].
  at::Tensor round_block(int64_t begin, int64_t count) {
    const at::Tensor block = values_.narrow(1, begin, count).contiguous();
    const at::Tensor upper = factor_.upper.narrow(0, begin, count).narrow(1, begin, count);
    const at::Tensor errors = at::empty_like(block);
    for (int64_t i = 0; i < count; ++i) {
      const AffineQparams& stored = qparams_of(begin + i, block, i);
      const AffineQparams wide = {
          stored.scale.to(at::kFloat),
          stored.zero_point.defined() && spec_.zero_point_domain == ZeroPointDomain::kFloat
              ? stored.zero_point.to(at::kFloat)
              : stored.zero_point,
          {}};
      const at::Tensor column = block.narrow(1, i, 1);
      const at::Tensor codes = quantize_affine(column, wide, column_spec_);
      const at::Tensor rounded = dequantize_affine(codes, wide, column_spec_, at::kFloat);
      const at::Tensor error = column.sub(rounded).div(upper[i][i]);
      block.narrow(1, i, count - i)
          .addmm_(error, upper[i].narrow(0, i, count - i).unsqueeze(0), 1, -1);
      errors.narrow(1, i, 1).copy_(error);
      codes_[order_[begin + i]].copy_(codes.squeeze(1));
    }
    return errors;
  }

  QuantizedTensor result() const {
    std::vector<at::Tensor> scales;
    std::vector<at::Tensor> zero_points;
    for (const AffineQparams& qparams : qparams_) {
      scales.push_back(qparams.scale);
      if (qparams.zero_point.defined()) {
        zero_points.push_back(qparams.zero_point);
      }
    }
    QuantizedTensor q;
    q.codes = codes_.t().contiguous();
    q.scale = at::cat(scales, 1);
    if (!zero_points.empty()) {
      q.zero_point = at::cat(zero_points, 1);
    }
    q.spec = spec_;
    return q;
  }

  QuantizationSpec spec_;
  QuantizationSpec column_spec_;  // a column, or a group, by itself
  const GptqFactor& factor_;
  at::ScalarType dtype_;
  int64_t group_;
  at::Tensor values_;  // [rows, cols] fp32, in the order of the factor
  at::Tensor codes_;   // [cols, rows], in the weight's order
  at::TensorAccessor<int64_t, 1> order_ = factor_.order.accessor<int64_t, 1>();
  std::vector<AffineQparams> qparams_;  // by group
};

}  // namespace

GptqFactor factorize(const at::Tensor& hessian, const GptqOptions& options) {
  TORCH_CHECK(hessian.dim() == 2 && hessian.size(0) == hessian.size(1),
              "expected a Hessian [cols, cols], got ", hessian.sizes());
  at::Tensor h = hessian.to(at::kDouble).clone();
  h.diagonal().masked_fill_(h.diagonal().eq(0), 1.0);
  at::Tensor order = at::arange(h.size(0), at::kLong);
  if (options.act_order) {
    order = h.diagonal().argsort(/*stable=*/true, /*dim=*/0, /*descending=*/true).contiguous();
    h = h.index_select(0, order).index_select(1, order);
  }
  double damping = options.damping;
  for (int attempt = 0; attempt < 4; ++attempt, damping *= 10) {
    if (const auto upper = inverse_factor(h, damping)) {
      return {upper->to(at::kFloat).contiguous(), order};
    }
  }
  TORCH_CHECK(false, "expected a Hessian that damping makes positive definite; the calibration ",
              "inputs hold NaN or infinities, or are too few");
}

QuantizedTensor gptq(const at::Tensor& weight, const GptqFactor& factor,
                     const QuantizationSpec& spec, const GptqOptions& options) {
  const at::NoGradGuard no_grad;
  check_spec(spec);
  TORCH_CHECK(spec.grid == Grid::kAffine && spec.granularity != Granularity::kPerTensor,
              "GPTQ: expected an integer scheme per row or group, got ", describe(spec));
  TORCH_CHECK(weight.dim() == 2 && weight.size(1) == factor.upper.size(0),
              "GPTQ: expected a weight of ", factor.upper.size(0), " columns, got ",
              weight.sizes());
  return ColumnRounding(weight, factor, spec, options.act_order).run();
}

}  // namespace narrowgauge::quantization
