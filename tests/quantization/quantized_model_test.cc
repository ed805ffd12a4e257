#include "quantization/quantized_model.h"

#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <stdexcept>

#include "tests/support/numerics.h"

namespace narrowgauge::quantization {
namespace {

using testing::expect_bitwise_equal;

std::filesystem::path temporary_directory() {
  const auto path = std::filesystem::path(::testing::TempDir()) / "quantized_model_test";
  std::filesystem::remove_all(path);
  return path;
}

QuantizedModel example() {
  QuantizedModel model;
  for (const std::string& name : scheme_names()) {
    const Scheme scheme = scheme_by_name(name);
    const at::Tensor weight = at::randn({12, 256}, at::kBFloat16);
    model.weights.emplace("model.layers.0." + name,
                          QuantizedWeight{quantize(weight, scheme.weight), scheme, at::kBFloat16});
  }
  model.plain.emplace("model.norm.weight", at::randn({256}));
  return model;
}

TEST(QuantizedModel, IsReadBackBitForBit) {
  const auto directory = temporary_directory();
  const QuantizedModel written = example();
  write_quantized_model(directory, written);
  const QuantizedModel read = read_quantized_model(directory);
  ASSERT_EQ(read.weights.size(), written.weights.size());
  for (const auto& [name, weight] : written.weights) {
    const QuantizedWeight& back = read.weights.at(name);
    EXPECT_EQ(back.scheme, weight.scheme);
    EXPECT_EQ(back.dtype, weight.dtype);
    expect_bitwise_equal(back.tensor.codes.view(at::kByte), weight.tensor.codes.view(at::kByte));
    expect_bitwise_equal(dequantize(back.tensor, back.dtype),
                         dequantize(weight.tensor, at::kBFloat16));
  }
  ASSERT_EQ(read.plain.size(), 1U);
  expect_bitwise_equal(read.plain.at("model.norm.weight"), written.plain.at("model.norm.weight"));
}

TEST(QuantizedModel, RefusesWhatIsNotOne) {
  const auto directory = temporary_directory();
  EXPECT_THROW(read_quantized_model(directory), std::exception);
  write_quantized_model(directory, example());
  const auto file = directory / kQuantizedModelFile;
  std::filesystem::resize_file(file, std::filesystem::file_size(file) - 1);
  EXPECT_THROW(read_quantized_model(directory), std::runtime_error);
}

TEST(QuantizedModel, RefusesAWeightThatIsNotAsItsSchemeSays) {
  QuantizedModel model = example();
  model.weights.begin()->second.scheme.weight.eps = 0.5;
  EXPECT_THROW(write_quantized_model(temporary_directory(), model), c10::Error);
}

}  // namespace
}  // namespace narrowgauge::quantization
