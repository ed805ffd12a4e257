#include "export/gguf_file.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "export/gguf_blocks.h"

namespace narrowgauge::exports {
namespace {

// A path of this process alone, where nothing is yet.
std::string scratch(const char* name) {
  return testing::TempDir() + std::to_string(::getpid()) + name;
}

at::Tensor bits(const at::Tensor& tensor) { return tensor.contiguous().view(at::kByte); }

GgufBlocks random_blocks(GgmlType type, int64_t rows, int64_t cols) {
  const bool q4 = type == GgmlType::kQ4_0;
  return {at::randint(q4 ? 0 : -127, q4 ? 16 : 128, {rows, cols},
                      at::TensorOptions(q4 ? at::kByte : at::kChar)),
          at::randn({rows, cols / 32}).to(at::kHalf)};
}

TEST(GgufBlocks, BytesAreGgmls) {
  // One block with the codes 0..15, 15..0 and the scale 1: fp16 0x3C00, then low | high << 4.
  const at::Tensor up = at::arange(16, at::TensorOptions(at::kByte));
  GgufBlocks blocks;
  blocks.codes = at::cat({up, up.flip(0)}).view({1, 32});
  blocks.scale = at::ones({1, 1}, at::TensorOptions(at::kHalf));
  const at::Tensor bytes = pack_gguf_blocks(GgmlType::kQ4_0, blocks);
  ASSERT_EQ(bytes.sizes(), at::IntArrayRef({1, 18}));
  const auto* data = bytes.const_data_ptr<uint8_t>();
  EXPECT_EQ(data[0], 0x00);
  EXPECT_EQ(data[1], 0x3C);
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(data[2 + i], i | (15 - i) << 4);
  }
}

TEST(GgufBlocks, UnpackedIsWhatWasPacked) {
  for (const GgmlType type : {GgmlType::kQ4_0, GgmlType::kQ8_0}) {
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 32}, {5, 96}, {0, 64}}) {
      const GgufBlocks blocks = random_blocks(type, rows, cols);
      const GgufBlocks again = unpack_gguf_blocks(type, pack_gguf_blocks(type, blocks));
      EXPECT_TRUE(at::equal(again.codes, blocks.codes));
      EXPECT_EQ(again.codes.scalar_type(), blocks.codes.scalar_type());
      EXPECT_TRUE(at::equal(bits(again.scale), bits(blocks.scale)));
    }
  }
}

TEST(GgufBlocks, WhatIsNoBlockIsRefused) {
  GgufBlocks blocks = random_blocks(GgmlType::kQ4_0, 2, 64);
  EXPECT_THROW(pack_gguf_blocks(GgmlType::kF32, blocks), c10::Error);
  EXPECT_THROW(pack_gguf_blocks(GgmlType::kQ8_0, blocks), c10::Error);
  blocks.codes[0][0] = 16;
  EXPECT_THROW(pack_gguf_blocks(GgmlType::kQ4_0, blocks), c10::Error);
  blocks = random_blocks(GgmlType::kQ4_0, 2, 64);
  blocks.scale = blocks.scale.narrow(1, 0, 1);
  EXPECT_THROW(pack_gguf_blocks(GgmlType::kQ4_0, blocks), c10::Error);
  EXPECT_THROW(unpack_gguf_blocks(GgmlType::kQ4_0, at::zeros({2, 17}, at::kByte)), c10::Error);
}

TEST(GgufFile, ReadsWhatItWrites) {
  const std::string path = scratch("roundtrip.gguf");
  const at::Tensor plain = at::randn({3, 5});
  const at::Tensor bf16 = at::randn({7}).to(at::kBFloat16);
  const at::Tensor blocks =
      pack_gguf_blocks(GgmlType::kQ8_0, random_blocks(GgmlType::kQ8_0, 4, 64));
  GgufWriter writer(path, {{"general.architecture", std::string("llama")}},
                    {{"q8", {4, 64}, GgmlType::kQ8_0, 0},
                     {"plain", {3, 5}, GgmlType::kF32, 0},
                     {"bf16", {7}, GgmlType::kBf16, 0}});
  EXPECT_THROW(writer.write("absent", plain), c10::Error);
  EXPECT_THROW(writer.write("plain", plain.t()), c10::Error);
  writer.write("plain", plain);
  writer.write("q8", blocks);
  EXPECT_THROW(writer.write("q8", blocks), c10::Error);
  EXPECT_THROW(writer.commit(), c10::Error);
  EXPECT_FALSE(std::filesystem::exists(path));
  writer.write("bf16", bf16);
  writer.commit();

  const GgufFile file = GgufFile::open(path);
  EXPECT_EQ(file.tensors().size(), 3U);
  EXPECT_TRUE(at::equal(file.tensor("plain"), plain));
  EXPECT_TRUE(at::equal(file.tensor("bf16"), bf16));
  EXPECT_TRUE(at::equal(file.tensor("q8"), blocks));
  EXPECT_THROW(file.tensor("absent"), c10::Error);
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 32);
  EXPECT_THROW(GgufFile::open(path), std::runtime_error);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace narrowgauge::exports
