#include "checkpoint/llama2c.h"

#include <ATen/ops/arange.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <vector>

#include "checkpoint/huggingface_names.h"

namespace narrowgauge::checkpoint {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class Llama2c : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* root = std::getenv("TEST_TMPDIR");
    std::string name = (fs::path(root ? root : "/tmp") / "llama2c.XXXXXX").string();
    folder_ = ::mkdtemp(name.data());
  }
  void TearDown() override { fs::remove_all(folder_); }

  // A file of `header` and floats 0, 1, 2, ...
  fs::path write(const std::vector<int32_t>& header, int64_t num_floats) {
    const fs::path path = folder_ / "model.bin";
    std::ofstream stream(path, std::ios::binary);
    stream.write(reinterpret_cast<const char*>(header.data()),
                 static_cast<std::streamsize>(header.size() * sizeof(int32_t)));
    for (int64_t i = 0; i < num_floats; ++i) {
      const auto value = static_cast<float>(i);
      stream.write(reinterpret_cast<const char*>(&value), sizeof(value));
    }
    return path;
  }

  std::string error(const std::vector<int32_t>& header, int64_t num_floats) {
    try {
      read_llama2c(write(header, num_floats));
    } catch (const std::runtime_error& failure) {
      EXPECT_THAT(failure.what(), HasSubstr("model.bin"));
      return failure.what();
    }
    return "";
  }

  fs::path folder_;
};

// dim 8, hidden 6, 1 layer, 2 heads (head_dim 4), 1 kv head, vocab 5, seq 3:
// 40 + 8 + 64 + 32 + 32 + 64 + 8 + 48 * 3 + 8 + 3 * 4
constexpr int64_t kNumFloats = 412;

TEST_F(Llama2c, ParametersAreThoseOfTheModelWithRotaryRowsPermuted) {
  const Llama2cModel model = read_llama2c(write({8, 6, 1, 2, 1, 5, 3}, kNumFloats));
  EXPECT_TRUE(model.config.tie_word_embeddings);
  EXPECT_EQ(model.config.norm_eps, 1e-5);
  const auto specs = parameter_specs(model.config);
  EXPECT_EQ(specs.size(), model.parameters.size());
  for (const ParameterSpec& spec : specs) {
    EXPECT_EQ(model.parameters.at(spec.name).sizes(), at::IntArrayRef(spec.sizes)) << spec.name;
  }
  // q starts after the embedding (40) and the norm (8); rows 0, 2, 1, 3 of each head.
  const at::Tensor qkv = model.parameters.at("layers.0.self_attn.qkv_proj.weight");
  const std::vector<int64_t> rows = {0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 13, 14, 15};
  for (int64_t i = 0; i < 16; ++i) {
    EXPECT_EQ(qkv[i][0].item<float>(), static_cast<float>(48 + 8 * rows[i])) << i;
  }
}

TEST_F(Llama2c, SizesMustAgree) {
  EXPECT_THAT(error({8, 6, 1, 2, 1, 5, 3}, kNumFloats - 1), HasSubstr("expected 1676 bytes"));
  EXPECT_THAT(error({8, 6, 1, 2, 1, 5, 3}, kNumFloats + 1), HasSubstr("got 1680"));
  EXPECT_THAT(error({8, 6, 1, 2, 1, -5, 3}, kNumFloats), HasSubstr("expected 1836 bytes"));
  EXPECT_EQ(error({8, 6, 1, 2, 1, -5, 3}, kNumFloats + 40), "");
}

TEST_F(Llama2c, NonsenseHeadersAreRefused) {
  EXPECT_THAT(error({8, 6, 1}, 0), HasSubstr("could read 12"));
  EXPECT_THAT(error({0x616b3432, 1, 8, 6, 1, 2, 1}, 100), HasSubstr("versioned"));
  EXPECT_THAT(error({8, 6, 1, 0, 1, 5, 3}, kNumFloats), HasSubstr("n_heads"));
  EXPECT_THAT(error({8, 6, 1, 3, 1, 5, 3}, kNumFloats), HasSubstr("n_heads"));
  EXPECT_THAT(error({INT32_MAX, INT32_MAX, INT32_MAX, 1, 1, INT32_MIN, INT32_MAX}, 0),
              HasSubstr("not a llama2.c model"));
  EXPECT_THROW(read_llama2c(folder_ / "absent"), std::runtime_error);
}

}  // namespace
}  // namespace narrowgauge::checkpoint
