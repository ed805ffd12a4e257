#include "qat/fake_quantize.h"

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <vector>

#include "cuda/launch_scope.h"
#include "nn/kernel_dispatch.h"
#include "qat/kernels/affine_fake_quantize.h"
#include "qat/kernels/affine_fake_quantize_cuda.h"
#include "qat/kernels/scaled_fake_quantize.h"
#include "quantization/group_factors.h"
#include "quantization/grouped.h"
#include "quantization/quantized_tensor.h"

namespace narrowgauge::qat {
namespace {

using quantization::Grid;
using quantization::MappingType;
using quantization::QuantizationSpec;
using quantization::ZeroPointDomain;
using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

constexpr int64_t kBitsPerWord = 64;

bool has_input_qparams(const QuantizationSpec& spec, at::ScalarType dtype) {
  const auto fits = [dtype](c10::ScalarType stored) {
    return stored == quantization::kInputDtype || stored == dtype;
  };
  if (spec.zero_point_domain == ZeroPointDomain::kFloat) {
    const auto wide_or_bf16 = [](c10::ScalarType stored) {
      return stored == at::kFloat || stored == at::kBFloat16;
    };
    return spec.scale_dtype == spec.zero_point_dtype && wide_or_bf16(spec.scale_dtype);
  }
  return fits(spec.scale_dtype);
}

// Whether a kernel knows this combination; the reference takes what it does
// not.
bool runs_kernel(const at::Tensor& x, const QuantizationSpec& spec, at::ScalarType dtype) {
  return x.dim() >= 1 && x.numel() > 0 && spec.grid == Grid::kAffine && !spec.float8_rows_first &&
         nn::has_kernel(x) &&
         (dtype == x.scalar_type() || (dtype == at::kBFloat16 && x.scalar_type() == at::kFloat)) &&
         has_input_qparams(spec, dtype);
}

kernels::AffineRange range_of(const QuantizationSpec& spec) {
  switch (spec.mapping) {
    case MappingType::kSymmetric:
      return kernels::AffineRange::kSymmetric;
    case MappingType::kSymmetricNoClippingError:
      return kernels::AffineRange::kNoClipping;
    case MappingType::kSymmetricFullRange:
      return kernels::AffineRange::kFullRange;
    case MappingType::kAsymmetric:
      return spec.zero_point_domain == ZeroPointDomain::kFloat
                 ? kernels::AffineRange::kFloatZeroPoint
                 : kernels::AffineRange::kAsymmetric;
  }
  TORCH_CHECK(false, "expected a mapping, got ", static_cast<int>(spec.mapping));
}

float smallest_scale(const QuantizationSpec& spec, at::ScalarType dtype) {
  const bool bf16 = dtype == at::kBFloat16;
  if (spec.eps == quantization::kEpsOfInput) {
    return bf16 ? static_cast<float>(std::numeric_limits<c10::BFloat16>::epsilon())
                : std::numeric_limits<float>::epsilon();
  }
  const bool in_bf16 = bf16 && spec.zero_point_domain != ZeroPointDomain::kFloat;
  const auto eps = static_cast<float>(spec.eps);
  return in_bf16 ? static_cast<float>(c10::BFloat16(eps)) : eps;
}

kernels::AffineGrid grid_of(const QuantizationSpec& spec, at::ScalarType dtype, int64_t cols) {
  kernels::AffineGrid grid;
  grid.range = range_of(spec);
  grid.group = spec.granularity == quantization::Granularity::kPerTensor
                   ? cols
                   : quantization::group_columns(spec, cols);
  grid.quant_min = static_cast<float>(spec.quant_min());
  grid.quant_max = static_cast<float>(spec.quant_max());
  grid.eps = smallest_scale(spec, dtype);
  grid.middle = static_cast<float>(spec.quant_min() + spec.quant_max() + 1) / 2;
  if (spec.zero_point_domain == ZeroPointDomain::kNone) {
    grid.middle = 0;
  }
  grid.round_qparams_to_bf16 = spec.scale_dtype == at::kBFloat16;
  return grid;
}

struct MatrixSize {
  int64_t rows;
  int64_t cols;
};

// Of the matrix whose rows have bits of their own.
MatrixSize matrix_size(const at::Tensor& x) {
  const int64_t cols = x.size(-1);
  return {cols == 0 ? 0 : x.numel() / cols, cols};
}

// Returns whether anything may have been clipped.
template <typename In, typename Out>
bool run_kernel(const at::Tensor& x, MatrixSize size, const kernels::AffineGrid& grid,
                const at::Tensor& values, const at::Tensor& bits) {
  const auto* from = nn::const_pointer<In>(x);
  auto* to = nn::mutable_pointer<Out>(values);
  auto* words = bits.defined() ? nn::mutable_pointer<uint64_t>(bits) : nullptr;
  if (x.is_cuda()) {
    const cuda::LaunchScope scope(x);
    kernels::fake_quantize_affine(from, size.rows, size.cols, grid, to, words, scope.stream());
    return words != nullptr;
  }
  const int64_t words_a_row = kernels::clipped_words(size.cols);
  std::atomic<bool> any = false;
  at::parallel_for(0, size.rows, nn::grain_rows(size.cols), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(5 * static_cast<size_t>(size.cols / grid.group));
    if (kernels::fake_quantize_affine(
            from + begin * size.cols, end - begin, size.cols, grid, to + begin * size.cols,
            words == nullptr ? nullptr : words + begin * words_a_row, scratch.data())) {
      any = true;
    }
  });
  return any;
}

FakeQuantized fused(const at::Tensor& x, const QuantizationSpec& spec, at::ScalarType dtype,
                    bool want_clipped) {
  const at::Tensor packed = x.detach().contiguous();
  const bool per_tensor = spec.granularity == quantization::Granularity::kPerTensor;
  const MatrixSize size = per_tensor ? MatrixSize{1, x.numel()} : matrix_size(x);
  const kernels::AffineGrid grid = grid_of(spec, dtype, size.cols);
  FakeQuantized result;
  result.values = at::empty(x.sizes(), packed.options().dtype(dtype));
  at::Tensor bits;
  if (want_clipped && quantization::can_clip(spec)) {
    bits = at::zeros({size.rows, kernels::clipped_words(size.cols)},
                     packed.options().dtype(at::kLong));
  }
  const bool any = dtype == at::kFloat
                       ? run_kernel<float, float>(packed, size, grid, result.values, bits)
                   : x.scalar_type() == at::kFloat
                       ? run_kernel<float, uint16_t>(packed, size, grid, result.values, bits)
                       : run_kernel<uint16_t, uint16_t>(packed, size, grid, result.values, bits);
  if (any) {
    result.clipped = bits;
  }
  return result;
}

kernels::ScaledRounding rounding_of(Grid grid) {
  switch (grid) {
    case Grid::kFloat8:
      return kernels::ScaledRounding::kE4m3Divided;
    case Grid::kMxfp8:
      return kernels::ScaledRounding::kE4m3Multiplied;
    case Grid::kMxfp4:
    case Grid::kNvfp4:
      return kernels::ScaledRounding::kE2m1Multiplied;
    case Grid::kGgufQ8_0:
      return kernels::ScaledRounding::kQ8_0;
    case Grid::kGgufQ4_0:
      return kernels::ScaledRounding::kQ4_0;
    case Grid::kAffine:
      break;
  }
  TORCH_CHECK(false, "expected a grid of scaled values");
}

// Two passes over x, between which the scales are made of the groups' largest
// elements.
at::Tensor fused_scaled(const at::Tensor& x, const QuantizationSpec& spec) {
  const at::Tensor packed = x.detach().contiguous();
  const at::Tensor groups = quantization::grouped(packed, spec);
  const int64_t num_groups = groups.size(0) * groups.size(1);
  const int64_t group = groups.size(2);
  const at::Tensor largest =
      at::empty({groups.size(0), groups.size(1)}, packed.options().dtype(at::kFloat));
  const at::Tensor values = at::empty(x.sizes(), packed.options());
  nn::with_element_type(packed, [&](auto element) {
    using T = decltype(element);
    const auto* from = nn::const_pointer<T>(packed);
    auto* of_group = nn::mutable_pointer<float>(largest);
    at::parallel_for(0, num_groups, nn::grain_rows(group), [&](int64_t begin, int64_t end) {
      kernels::signed_amax(from + begin * group, end - begin, group, of_group + begin);
    });
    const auto factors = quantization::group_factors(largest, spec, x.scalar_type());
    const at::Tensor before = factors.before.contiguous();
    const at::Tensor after = factors.after.contiguous();
    const auto rounding = rounding_of(spec.grid);
    at::parallel_for(0, num_groups, nn::grain_rows(group), [&](int64_t begin, int64_t end) {
      kernels::fake_quantize_scaled(from + begin * group, end - begin, group, rounding,
                                    nn::const_pointer<float>(before) + begin,
                                    nn::const_pointer<float>(after) + begin,
                                    nn::mutable_pointer<T>(values) + begin * group);
    });
  });
  return values;
}

// bool [rows, cols] to bits.
at::Tensor packed_bits(const at::Tensor& mask) {
  const int64_t cols = mask.size(1);
  const int64_t words = kernels::clipped_words(cols);
  const at::Tensor padded =
      at::constant_pad_nd(mask.to(at::kLong), {0, words * kBitsPerWord - cols});
  const at::Tensor shifts = at::arange(kBitsPerWord, padded.options());
  return padded.reshape({mask.size(0), words, kBitsPerWord}).bitwise_left_shift(shifts).sum(2);
}

at::Tensor unpacked_bits(const at::Tensor& bits, int64_t cols) {
  const at::Tensor shifts = at::arange(kBitsPerWord, bits.options());
  return bits.unsqueeze(2)
      .bitwise_right_shift(shifts)
      .bitwise_and(1)
      .reshape({bits.size(0), bits.size(1) * kBitsPerWord})
      .narrow(1, 0, cols)
      .to(at::kBool);
}

// Rows as `clipped` divides the tensor: one where a scale spans all.
at::Tensor as_matrix(const at::Tensor& x, int64_t rows) { return x.reshape({rows, -1}); }

struct FakeQuantizeFunction : torch::autograd::Function<FakeQuantizeFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const QuantizationSpec& spec) {
    FakeQuantized result = fake_quantize_with_clipped(x, spec, x.scalar_type(), true);
    context->save_for_backward({result.clipped});
    return result.values;
  }

  static tensor_list backward(AutogradContext* context, const tensor_list& grads) {
    const at::Tensor clipped = context->get_saved_variables()[0];
    // The gradient that came in may be somebody else's, too.
    return {clipped.defined() ? zero_clipped(grads[0].clone(), clipped) : grads[0], at::Tensor()};
  }
};

}  // namespace

FakeQuantized fake_quantize_with_clipped_reference(const at::Tensor& x,
                                                   const QuantizationSpec& spec,
                                                   at::ScalarType dtype, bool want_clipped) {
  const at::Tensor input = x.detach().to(dtype);
  FakeQuantized result;
  result.values = quantization::fake_quantize(input, spec);
  if (want_clipped && quantization::can_clip(spec) && input.numel() > 0) {
    const bool per_tensor = spec.granularity == quantization::Granularity::kPerTensor;
    const MatrixSize size = matrix_size(input);
    const at::Tensor mask = quantization::clipped(input, spec);
    result.clipped = packed_bits(as_matrix(mask, per_tensor ? 1 : size.rows));
  }
  return result;
}

FakeQuantized fake_quantize_with_clipped(const at::Tensor& x, const QuantizationSpec& spec,
                                         at::ScalarType dtype, bool want_clipped) {
  RECORD_FUNCTION("narrowgauge::qat::fake_quantize", c10::ArrayRef<const c10::IValue>());
  const bool scaled = spec.grid != Grid::kAffine && x.is_cpu() && x.dim() >= 1 && x.numel() > 0;
  if (scaled && (dtype == at::kFloat || dtype == at::kBFloat16)) {
    quantization::check_spec(spec);
    const at::Tensor input = x.detach().to(dtype);
    FakeQuantized result{fused_scaled(input, spec), {}};
    if (want_clipped && quantization::can_clip(spec)) {
      result.clipped =
          packed_bits(as_matrix(quantization::clipped(input, spec), matrix_size(input).rows));
    }
    return result;
  }
  if (!runs_kernel(x, spec, dtype)) {
    return fake_quantize_with_clipped_reference(x, spec, dtype, want_clipped);
  }
  quantization::check_spec(spec);
  return fused(x, spec, dtype, want_clipped);
}

at::Tensor zero_clipped(at::Tensor grad, const at::Tensor& clipped) {
  RECORD_FUNCTION("narrowgauge::qat::zero_clipped", c10::ArrayRef<const c10::IValue>());
  if (!clipped.defined() || grad.numel() == 0) {
    return grad;
  }
  const int64_t rows = clipped.size(0);
  const int64_t cols = grad.numel() / rows;
  TORCH_CHECK(grad.numel() % rows == 0 && clipped.size(1) == kernels::clipped_words(cols),
              "expected a gradient of ", rows, " rows, got ", grad.sizes());
  if (!nn::has_kernel(grad)) {
    return as_matrix(grad, rows).masked_fill(unpacked_bits(clipped, cols), 0).reshape(grad.sizes());
  }
  grad = grad.contiguous();
  const auto* words = nn::const_pointer<uint64_t>(clipped);
  nn::with_element_type(grad, [&](auto element) {
    auto* values = nn::mutable_pointer<decltype(element)>(grad);
    if (grad.is_cuda()) {
      const cuda::LaunchScope scope(grad);
      kernels::zero_clipped(words, rows, cols, values, scope.stream());
      return;
    }
    at::parallel_for(0, rows, nn::grain_rows(cols), [&](int64_t begin, int64_t end) {
      kernels::zero_clipped(words + begin * clipped.size(1), end - begin, cols,
                            values + begin * cols);
    });
  });
  return grad;
}

at::Tensor fake_quantize(const at::Tensor& x, const QuantizationSpec& spec) {
  return FakeQuantizeFunction::apply(x, spec);
}

}  // namespace narrowgauge::qat
