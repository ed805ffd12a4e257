#include "quantization/packed_weight.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/isnan.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "nn/layer.h"
#include "quantization/quantized_linear.h"
#include "quantization/scheme.h"
#include "tests/support/numerics.h"

namespace narrowgauge::quantization {
namespace {

using testing::expect_bitwise_equal;
using testing::expect_close;

std::vector<Scheme> schemes() {
  std::vector<Scheme> all;
  for (const std::string& name : scheme_names()) {
    all.push_back(scheme_by_name(name, name == "int4-weight-only" ||
                                               name == "int8-dynamic-act-int4-weight" ||
                                               name == "float8-act-int4-weight"
                                           ? SchemeOptions{.group_size = 32}
                                           : SchemeOptions{}));
  }
  for (const int bits : {1, 2, 3, 4, 5, 8}) {
    for (const MappingType mapping : {MappingType::kSymmetric, MappingType::kAsymmetric}) {
      if (bits > 1 || mapping == MappingType::kAsymmetric) {
        all.push_back(scheme_by_name("intx-weight-only",
                                     {.group_size = 64, .bits = bits, .mapping = mapping}));
      }
    }
  }
  return all;
}

at::Tensor weight(int64_t rows, int64_t cols, at::ScalarType dtype = at::kFloat) {
  return at::randn({rows, cols}).mul(0.05).add(0.01).to(dtype);
}

PackedWeight packed(const QuantizedTensor& q) {
  auto w = pack({&q, 1});
  TORCH_CHECK(w, "expected weights that can be packed");
  return *std::move(w);
}

// The sum of the absolute values of all that is added up, offsets apart from codes.
at::Tensor magnitude(const at::Tensor& x, const PackedWeight& w) {
  PackedWeight codes_only = w;
  codes_only.offset = at::Tensor();
  at::Tensor sizes = unpack(codes_only, at::kFloat).abs();
  if (w.offset.defined()) {
    const at::Tensor offsets = w.offset.abs().repeat_interleave(w.group_size, 1);
    sizes = sizes + offsets.narrow(1, 0, w.cols);
  }
  return x.to(at::kFloat).abs().matmul(sizes.t());
}

TEST(PackedWeight, UnpacksToTheValuesOfDequantize) {
  for (const Scheme& scheme : schemes()) {
    SCOPED_TRACE(scheme.name + " " + describe(scheme.weight));
    const QuantizedTensor q = quantize(weight(13, 192), scheme.weight);
    const at::Tensor expected = dequantize(q, at::kFloat);
    const PackedWeight w = packed(q);
    EXPECT_EQ(w.rows, 13);
    // Where zero points are folded into offsets, two roundings of fp32 in place of one.
    expect_close(unpack(w, at::kFloat), expected, 4.0 / (1 << 24),
                 w.offset.defined() ? at::full_like(expected, expected.abs().max().item())
                                    : at::zeros_like(expected));
    if (!w.offset.defined()) {
      expect_bitwise_equal(unpack(w, at::kFloat), expected);
    }
  }
}

TEST(PackedWeight, ProductsAreThoseOfDequantizedWeights) {
  for (const Scheme& scheme : schemes()) {
    for (const int64_t tokens : {1, 2, 3, 4, 5, 9, 16, 17, 40}) {
      SCOPED_TRACE(scheme.name + " " + describe(scheme.weight) + " x " + std::to_string(tokens));
      const QuantizedTensor q = quantize(weight(27, 192), scheme.weight);
      const PackedWeight w = packed(q);
      const at::Tensor x = at::randn({tokens, 192});
      const at::Tensor bias = at::randn({27});
      const at::Tensor expected =
          x.to(at::kDouble).matmul(dequantize(q, at::kFloat).to(at::kDouble).t()).add(bias);
      expect_close(packed_linear(x, w, bias), expected.to(at::kFloat),
                   testing::tolerance(at::kFloat, 2 * 192), magnitude(x, w));
    }
  }
}

TEST(PackedWeight, TakesBFloat16) {
  for (const int64_t tokens : {1, 33}) {
    const Scheme scheme = scheme_by_name("int4-weight-only", {.group_size = 64});
    const QuantizedTensor q = quantize(weight(64, 256, at::kBFloat16), scheme.weight);
    const at::Tensor x = at::randn({2, tokens, 256}).to(at::kBFloat16);
    const at::Tensor y = packed_linear(x, packed(q), {});
    EXPECT_EQ(y.scalar_type(), at::kBFloat16);
    const at::Tensor expected =
        x.to(at::kDouble).matmul(dequantize(q, at::kFloat).to(at::kDouble).t());
    // Beyond kMostGemvTokens weights are rounded to bf16 too.
    expect_close(y, expected.to(at::kBFloat16), 2 * testing::tolerance(at::kBFloat16, 512),
                 magnitude(x, packed(q)));
  }
}

TEST(PackedWeight, PathsAgreeOnOddShapes) {
  for (const Scheme& scheme : schemes()) {
    const bool per_row = scheme.weight.granularity == Granularity::kPerRow ||
                         scheme.weight.granularity == Granularity::kPerTensor;
    const bool is_nvfp4 = scheme.weight.grid == Grid::kNvfp4;
    for (const int64_t cols : {1, 31, 33, 48, 100}) {
      if (!per_row && !(is_nvfp4 && cols == 48)) {
        continue;
      }
      for (const int64_t rows : {1, 3, 6}) {
        SCOPED_TRACE(scheme.name + " " + std::to_string(rows) + "x" + std::to_string(cols));
        const QuantizedTensor q = quantize(weight(rows, cols), scheme.weight);
        const PackedWeight w = packed(q);
        const at::Tensor x = at::randn({2, cols});
        const at::Tensor expected = x.matmul(dequantize(q, at::kFloat).t());
        expect_close(packed_linear(x, w, {}), expected, testing::tolerance(at::kFloat, 2 * cols),
                     magnitude(x, w));
      }
    }
  }
}

// Straight to the kernels: the portable path is no other's fallback on this processor.
TEST(PackedWeight, PortableKernelAgrees) {
  for (const Scheme& scheme : schemes()) {
    for (const int64_t tokens : {1, 2, 3, 4}) {
      SCOPED_TRACE(scheme.name + " " + describe(scheme.weight));
      const PackedWeight w = packed(quantize(weight(9, 192), scheme.weight));
      const at::Tensor x = at::randn({tokens, 192});
      const at::Tensor sums = x.view({tokens, w.scale.size(1), -1}).sum(-1).contiguous();
      const kernels::PackedRows rows{
          w.format,
          w.codes.const_data_ptr<uint8_t>(),
          w.scale.const_data_ptr<float>(),
          w.offset.defined() ? w.offset.const_data_ptr<float>() : nullptr,
          192 / kernels::kBlock,
          w.scale.size(1),
          w.group_size};
      const kernels::GemvInput input{x.const_data_ptr<float>(), sums.const_data_ptr<float>(),
                                     tokens};
      const at::Tensor fast = at::zeros({tokens, 9});
      const at::Tensor portable = at::zeros({tokens, 9});
      kernels::packed_gemv(rows, input, 0, 9, fast.mutable_data_ptr<float>(), 9);
      kernels::packed_gemv_portable(rows, input, 0, 9, portable.mutable_data_ptr<float>(), 9);
      expect_close(portable, fast, 2 * testing::tolerance(at::kFloat, 2 * 192), magnitude(x, w));
    }
  }
}

TEST(PackedWeight, StacksPartsAndKeepsTheirTensorScales) {
  const Scheme scheme =
      scheme_by_name("float8-weight-only", {.granularity = Granularity::kPerTensor});
  const std::vector<QuantizedTensor> parts = {quantize(weight(5, 64), scheme.weight),
                                              quantize(weight(3, 64).mul(7), scheme.weight)};
  const auto w = pack(parts);
  ASSERT_TRUE(w);
  expect_bitwise_equal(unpack(*w, at::kFloat), at::cat({dequantize(parts[0], at::kFloat),
                                                        dequantize(parts[1], at::kFloat)}));
}

TEST(PackedWeight, LeavesOtherGroupsToDequantize) {
  const Scheme scheme = scheme_by_name("intx-weight-only", {.group_size = 24, .bits = 4});
  const QuantizedTensor q = quantize(weight(4, 48), scheme.weight);
  EXPECT_FALSE(pack({&q, 1}));
  QuantizedLinear linear({48, 4, false}, {q}, std::nullopt, {});
  EXPECT_FALSE(linear.is_packed());
  const at::Tensor x = at::randn({3, 48});
  expect_close(linear(x), x.matmul(dequantize(q, at::kFloat).t()),
               testing::tolerance(at::kFloat, 48));
}

TEST(PackedWeight, NaNStaysNaN) {
  for (const char* name : {"float8-weight-only", "int8-weight-only", "mxfp8", "nvfp4"}) {
    SCOPED_TRACE(name);
    at::Tensor values = weight(4, 64);
    values[2][5] = std::numeric_limits<float>::quiet_NaN();
    const QuantizedTensor q = quantize(values, scheme_by_name(name).weight);
    const at::Tensor expected = at::randn({1, 64}).matmul(dequantize(q, at::kFloat).t());
    const at::Tensor y = packed_linear(at::randn({1, 64}), packed(q), {});
    EXPECT_TRUE(at::equal(y.isnan(), expected.isnan()));
    EXPECT_TRUE(y.isnan().any().item<bool>());
  }
}

TEST(PackedWeight, CountsItsBytes) {
  const QuantizedTensor q =
      quantize(weight(64, 256), scheme_by_name("int4-weight-only", {.group_size = 128}).weight);
  EXPECT_EQ(packed(q).size_bytes(), 64 * 256 / 2 + 64 * 2 * (4 + 4));
}

TEST(QuantizedLinear, RoundsItsInputAsTheSchemeSays) {
  for (const char* name : {"int8-dynamic-act-int4-weight", "int8-dynamic-act-int8-weight",
                           "float8-dynamic-act-float8-weight", "mxfp8"}) {
    SCOPED_TRACE(name);
    const Scheme scheme = scheme_by_name(name);
    ASSERT_TRUE(scheme.activation);
    const QuantizedTensor q = quantize(weight(16, 128), scheme.weight);
    const at::Tensor bias = at::randn({16});
    QuantizedLinear linear({128, 16, true}, {q}, scheme.activation, bias);
    const at::Tensor x = at::randn({5, 128});
    const at::Tensor expected =
        fake_quantize(x, *scheme.activation).matmul(dequantize(q, at::kFloat).t()).add(bias);
    expect_close(linear(x), expected, testing::tolerance(at::kFloat, 256));
    EXPECT_TRUE(linear.weight.is_meta());
  }
}

TEST(QuantizedLinear, RefusesWhatDoesNotFit) {
  const QuantizedTensor q = quantize(weight(16, 128), scheme_by_name("int8-weight-only").weight);
  EXPECT_THROW(QuantizedLinear({128, 17, false}, {q}, {}, {}), c10::Error);
  EXPECT_THROW(QuantizedLinear({64, 16, false}, {q}, {}, {}), c10::Error);
  EXPECT_THROW(QuantizedLinear({128, 16, true}, {q}, {}, {}), c10::Error);
  EXPECT_THROW(packed_linear(at::randn({1, 64}), packed(q), {}), c10::Error);
}

}  // namespace
}  // namespace narrowgauge::quantization
