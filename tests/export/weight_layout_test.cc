#include "export/weight_layout.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "export/bit_equality.h"
#include "export/compressed_tensors_layout.h"
#include "export/fine_grained_fp8_layout.h"
#include "export/torchao_layout.h"

namespace narrowgauge::exports {
namespace {

using quantization::QuantizedTensor;
using quantization::Scheme;
using quantization::SchemeOptions;

constexpr const char* kModule = "model.layers.0.mlp.up_proj";

std::vector<Scheme> every_scheme() {
  std::vector<Scheme> schemes;
  for (const std::string& name : quantization::scheme_names()) {
    schemes.push_back(quantization::scheme_by_name(name));
  }
  for (int bits = 1; bits <= 8; ++bits) {
    SchemeOptions options;
    options.bits = bits;
    options.group_size = 32;
    if (bits > 1) {
      schemes.push_back(quantization::scheme_by_name("intx-weight-only", options));
      schemes.push_back(quantization::scheme_by_name("int8-dynamic-act-intx-weight", options));
    }
    options.mapping = quantization::MappingType::kAsymmetric;
    schemes.push_back(quantization::scheme_by_name("intx-weight-only", options));
  }
  SchemeOptions tensor;
  tensor.granularity = quantization::Granularity::kPerTensor;
  schemes.push_back(quantization::scheme_by_name("float8-weight-only", tensor));
  schemes.push_back(quantization::scheme_by_name("float8-dynamic-act-float8-weight", tensor));
  return schemes;
}

std::vector<std::unique_ptr<WeightLayout>> every_layout() {
  std::vector<std::unique_ptr<WeightLayout>> layouts;
  layouts.push_back(torchao_layout());
  layouts.push_back(compressed_tensors_layout());
  layouts.push_back(fine_grained_fp8_layout());
  return layouts;
}

QuantizedTensor without_values(QuantizedTensor weight) {
  const auto meta = [](const at::Tensor& tensor) {
    return at::empty_like(tensor, tensor.options().device(at::kMeta));
  };
  weight.codes = meta(weight.codes);
  weight.scale = meta(weight.scale);
  if (weight.zero_point) {
    weight.zero_point = meta(*weight.zero_point);
  }
  if (weight.outer_scale) {
    weight.outer_scale = meta(*weight.outer_scale);
  }
  return weight;
}

void expect_round_trip(const WeightLayout& layout, const Scheme& scheme, const at::Tensor& x) {
  const QuantizedTensor weight = quantization::quantize(x, scheme.weight);
  const auto tensors = layout.pack(kModule, scheme, weight, x.scalar_type());
  const auto shapes = layout.pack(kModule, scheme, without_values(weight), x.scalar_type());
  std::map<std::string, at::Tensor> file;
  ASSERT_EQ(tensors.size(), shapes.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    EXPECT_EQ(tensors[i].name, shapes[i].name);
    EXPECT_EQ(tensors[i].tensor.sizes(), shapes[i].tensor.sizes());
    EXPECT_EQ(tensors[i].tensor.scalar_type(), shapes[i].tensor.scalar_type());
    file[tensors[i].name] = tensors[i].tensor;
  }
  const QuantizedTensor again =
      layout.unpack(kModule, scheme, [&](const std::string& name) { return file.at(name); });
  EXPECT_NO_THROW(require_bit_equal(weight, again, scheme.name)) << layout.name();
  EXPECT_NO_THROW(require_bit_equal(quantization::dequantize(weight, x.scalar_type()),
                                    quantization::dequantize(again, x.scalar_type()), "values"));
}

// Every scheme is either held bit for bit or refused, by every layout.
TEST(WeightLayout, EverySchemeRoundTripsOrIsRefused) {
  std::map<std::string, int> held;
  for (const auto& layout : every_layout()) {
    for (const Scheme& scheme : every_scheme()) {
      if (layout->refusal(kModule, scheme)) {
        continue;
      }
      ++held[layout->name()];
      for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
        expect_round_trip(*layout, scheme, at::randn({24, 256}).to(dtype));
        expect_round_trip(*layout, scheme, at::randn({1, 128}).to(dtype).mul(1e-3));
      }
    }
  }
  EXPECT_GE(held["torchao"], 20);
  EXPECT_GE(held["compressed-tensors"], 20);
}

TEST(WeightLayout, WhatAFormatCannotHoldItRefusesWithAReason) {
  const auto refused = [](const std::unique_ptr<WeightLayout>& layout, const char* scheme) {
    return layout->refusal(kModule, quantization::scheme_by_name(scheme)).has_value();
  };
  const auto torchao = torchao_layout();
  const auto compressed = compressed_tensors_layout();
  const auto fp8 = fine_grained_fp8_layout();
  for (const char* gguf : {"gguf-q4_0", "gguf-q8_0"}) {
    EXPECT_TRUE(refused(torchao, gguf));
    EXPECT_TRUE(refused(compressed, gguf));
    EXPECT_TRUE(refused(fp8, gguf));
  }
  EXPECT_TRUE(refused(compressed, "int4-weight-only"));
  EXPECT_TRUE(refused(compressed, "float8-act-int4-weight"));
  EXPECT_TRUE(refused(compressed, "nvfp4"));
  EXPECT_TRUE(refused(fp8, "float8-dynamic-act-float8-weight"));
  EXPECT_FALSE(refused(torchao, "8da4w"));
  EXPECT_FALSE(refused(compressed, "8da4w"));
  const Scheme wo = quantization::scheme_by_name("intx-weight-only");
  EXPECT_FALSE(torchao->refusal("model.embed_tokens", wo).has_value());
  EXPECT_TRUE(torchao->refusal("model.embed_tokens", quantization::scheme_by_name("8da4w")));
  EXPECT_TRUE(compressed->refusal("model.embed_tokens", wo).has_value());
}

TEST(WeightLayout, BlockwiseFp8IsHeldAsItIs) {
  const auto layout = fine_grained_fp8_layout();
  const Scheme scheme = blockwise_fp8_scheme();
  ASSERT_FALSE(layout->refusal(kModule, scheme));
  EXPECT_TRUE(layout->refusal("lm_head", scheme));
  QuantizedTensor weight;
  weight.codes = at::randn({200, 300}).to(at::kFloat8_e4m3fn);
  weight.scale = at::rand({2, 3});
  weight.spec = scheme.weight;
  std::map<std::string, at::Tensor> file;
  for (const NamedTensor& tensor : layout->pack(kModule, scheme, weight, at::kBFloat16)) {
    file[tensor.name] = tensor.tensor;
  }
  EXPECT_EQ(file.count(std::string(kModule) + ".weight_scale_inv"), 1U);
  require_bit_equal(
      weight,
      layout->unpack(kModule, scheme, [&](const std::string& name) { return file.at(name); }),
      kModule);
}

// compressed_tensors' own example (pack_quantized/helpers.py): eight codes of 4 bits a word, the
// first lowest, 8 added; five codes of 3 bits take one word of ten places.
TEST(CompressedTensors, WordsAreFilledFromTheLowEnd) {
  const auto layout = compressed_tensors_layout();
  SchemeOptions options;
  options.bits = 4;
  const Scheme scheme = quantization::scheme_by_name("intx-weight-only", options);
  QuantizedTensor weight;
  weight.codes = at::tensor({-8, -7, -6, -5, 7, 6, 5, 4, 1}, at::kChar).view({1, 9});
  weight.scale = at::ones({1, 1});
  weight.spec = scheme.weight;
  const auto tensors = layout->pack(kModule, scheme, weight, at::kFloat);
  ASSERT_EQ(tensors[0].name, std::string(kModule) + ".weight_packed");
  ASSERT_EQ(tensors[0].tensor.sizes(), at::IntArrayRef({1, 2}));
  EXPECT_EQ(static_cast<uint32_t>(tensors[0].tensor[0][0].item<int32_t>()), 0xCDEF3210U);
  EXPECT_EQ(static_cast<uint32_t>(tensors[0].tensor[0][1].item<int32_t>()), 0x9U);
}

TEST(BitEquality, TellsZerosAndNansApart) {
  const at::Tensor zero = at::zeros({2});
  EXPECT_THROW(require_bit_equal(zero, zero.neg(), "t"), c10::Error);
  const at::Tensor nan = zero.div(zero);
  EXPECT_NO_THROW(require_bit_equal(nan, nan.clone(), "t"));
  EXPECT_THROW(require_bit_equal(zero, zero.to(at::kHalf), "t"), c10::Error);
  EXPECT_THROW(require_bit_equal(zero, zero.view({1, 2}), "t"), c10::Error);
}

}  // namespace
}  // namespace narrowgauge::exports
