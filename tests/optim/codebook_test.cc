#include "optim/codebook.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace narrowgauge::optim {
namespace {

struct Named {
  std::string name;
  Codebook codebook;
};

std::vector<Named> all() {
  return {{"signed 8", Codebook::dynamic_tree(true, 7, 8)},
          {"unsigned 8", Codebook::dynamic_tree(false, 7, 8)},
          {"signed 4", Codebook::dynamic_tree(true, 3, 4)},
          {"unsigned 4", Codebook::linear4()},
          {"e4m3", Codebook::e4m3()}};
}

uint8_t encode_by_table(float x, const Codebook& codebook) {
  uint8_t code = 0;
  kernels::encode(&code, &x, 1, 1.0F, codebook.table());
  return code;
}

// Every cell at its ends and around every change of code within it, which is all there is to get
// wrong: between them both ways are constant.
TEST(Codebook, TableAgreesWithTheReference) {
  for (const auto& [name, codebook] : all()) {
    const kernels::CodebookTable table = codebook.table();
    for (const uint32_t sign : {0U, 0x80000000U}) {
      for (uint32_t cell = 0; cell < static_cast<uint32_t>(table.last_cell); ++cell) {
        for (uint32_t low = 0; low < 0x10000; low += low < 8 || low > 0xfff0 ? 1 : 61) {
          const float x = std::bit_cast<float>(sign | cell << 16 | low);
          ASSERT_EQ(encode_by_table(x, codebook), codebook.encode(x)) << name << ", x = " << x;
        }
      }
    }
    // The boundaries themselves, found from the reference.
    for (int code = 0; code + 1 < codebook.num_codes(); ++code) {
      const float low = codebook.values()[static_cast<size_t>(code)];
      const float high = codebook.values()[static_cast<size_t>(code + 1)];
      if (std::isnan(low) || std::isnan(high)) {
        continue;
      }
      float x = (low + high) / 2;
      for (int i = 0; i < 8; ++i) {
        x = std::nextafter(x, -1e9F);
      }
      for (int i = 0; i < 16; ++i, x = std::nextafter(x, 1e9F)) {
        ASSERT_EQ(encode_by_table(x, codebook), codebook.encode(x)) << name << ", x = " << x;
      }
    }
  }
}

// Whatever a piece of 64 goes through (registers of the processor, if it has wide ones) gives what
// one value at a time does: every boundary and its neighbours, both signs, zeros, the largest.
TEST(Codebook, ManyAtOnceAgreeWithOneAtATime) {
  for (const auto& [name, codebook] : all()) {
    const float largest = codebook.table().scale_divisor;
    std::vector<float> magnitudes = {0.0F, 0x1p-149F, 0x1p-126F, largest};
    for (int code = 0; code + 1 < codebook.num_codes(); ++code) {
      const float low = std::fabs(codebook.values()[static_cast<size_t>(code)]);
      const float high = std::fabs(codebook.values()[static_cast<size_t>(code + 1)]);
      if (std::isnan(low) || std::isnan(high)) {
        continue;
      }
      magnitudes.push_back(low);
      float x = (low + high) / 2;
      for (int i = 0; i < 40; ++i) {
        x = std::nextafter(x, 0.0F);
      }
      for (int i = 0; i < 80; ++i, x = std::nextafter(x, 1e9F)) {
        magnitudes.push_back(x);
      }
      for (const float share : {0.9998F, 0.9999F, 1.0001F, 1.0002F}) {
        magnitudes.push_back((low + high) / 2 * share);
      }
    }
    for (const float scale : {1.0F, 0.3F, 1e-12F / largest, 3e-5F, 7e20F, 2e32F, 1e35F}) {
      std::vector<float> x;
      for (const float magnitude : magnitudes) {
        for (const float value : {magnitude, -magnitude}) {
          if (std::fabs(value * scale / scale) <= largest) {
            x.push_back(value * scale);
          }
        }
      }
      x.resize(x.size() / 64 * 64);
      std::vector<uint8_t> codes(x.size());
      const auto count = static_cast<int64_t>(x.size());
      kernels::encode(codes.data(), x.data(), count, scale, codebook.table());
      for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_EQ(codes[i], codebook.encode(x[i] / scale))
            << name << ", x = " << x[i] << ", scale = " << scale;
      }
      if (codebook.num_codes() == 16) {
        std::vector<uint8_t> packed(x.size() / 2);
        kernels::encode_packed(packed.data(), x.data(), count, scale, codebook.table());
        for (size_t i = 0; i < packed.size(); ++i) {
          ASSERT_EQ(packed[i], codes[2 * i] << 4 | codes[2 * i + 1]) << name;
        }
      }
    }
  }
}

TEST(Codebook, AScaleThatIsNotFiniteGivesTheReferencesCodes) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const auto& [name, codebook] : all()) {
    std::vector<float> x(64, 1.0F);
    x[3] = std::nanf("");
    x[5] = infinity;
    x[7] = -infinity;
    for (const float scale : {infinity, std::nanf("")}) {
      std::vector<uint8_t> codes(64);
      kernels::encode(codes.data(), x.data(), 64, scale, codebook.table());
      for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_EQ(codes[i], encode_by_table(x[i] / scale, codebook)) << name << " " << i;
      }
    }
  }
}

TEST(Codebook, EncodesToTheNearestValue) {
  std::mt19937 generator(3);
  for (const auto& [name, codebook] : all()) {
    std::uniform_real_distribution<float> uniform(name.starts_with("unsigned") ? 0.0F : -1.0F,
                                                  1.0F);
    for (int i = 0; i < 20000; ++i) {
      const float x =
          std::pow(uniform(generator), i % 2 == 0 ? 1.0F : 7.0F) * codebook.table().scale_divisor;
      const float chosen = codebook.values()[encode_by_table(x, codebook)];
      for (const float value : codebook.values()) {
        // NaN, beyond the codes, is no nearer.
        ASSERT_FALSE(std::fabs(value - x) < std::fabs(chosen - x) * (1 - 1e-6F))
            << name << ", x = " << x << ": " << chosen << ", but " << value << " is nearer";
      }
    }
  }
}

TEST(Codebook, ValuesAreTorchaos) {
  const Codebook s8 = Codebook::dynamic_tree(true, 7, 8);
  EXPECT_FLOAT_EQ(s8.values()[0], -0.99296875F);
  EXPECT_EQ(s8.values()[127], 0.0F);
  EXPECT_EQ(s8.values()[255], 1.0F);
  const Codebook u8 = Codebook::dynamic_tree(false, 7, 8);
  EXPECT_EQ(u8.values()[0], 0.0F);
  EXPECT_FLOAT_EQ(u8.values()[1], 3.25e-7F);
  EXPECT_FLOAT_EQ(u8.values()[2], 7.75e-7F);
  EXPECT_FLOAT_EQ(u8.values()[3], 2.125e-6F);
  const std::vector<float> s4 = {-.8875F, -.6625F, -.4375F, -.2125F, -.0775F, -.0325F, -.0055F, 0,
                                 .0055F,  .0325F,  .0775F,  .2125F,  .4375F,  .6625F,  .8875F,  1};
  const Codebook signed4 = Codebook::dynamic_tree(true, 3, 4);
  for (size_t i = 0; i < s4.size(); ++i) {
    EXPECT_FLOAT_EQ(signed4.values()[i], s4[i]);
    EXPECT_EQ(Codebook::linear4().values()[i], static_cast<float>(i + 1) / 16);
  }
}

TEST(Codebook, EdgesOfE4M3) {
  const Codebook codebook = Codebook::e4m3();
  const std::vector<std::pair<float, int>> cases = {
      {0.0F, 0x00},     {-0.0F, 0x80},     {448.0F, 0x7e},       {-448.0F, 0xfe}, {0x1p-9F, 0x01},
      {0x1p-10F, 0x00}, {0x1.8p-9F, 0x02}, {1.0F, 0x38},         {1.0625F, 0x38}, {1.1875F, 0x3a},
      {-1.0626F, 0xb9}, {448.0001F, 0x7e}, {std::nanf(""), 0x7f}};
  for (const auto& [x, code] : cases) {
    EXPECT_EQ(encode_by_table(x, codebook), code) << x;
    EXPECT_EQ(codebook.encode(x), code) << x;
  }
}

TEST(Codebook, NanAndInfinityOfABlockStayInItsScale) {
  for (const auto& [name, codebook] : all()) {
    const kernels::CodebookTable table = codebook.table();
    EXPECT_TRUE(std::isnan(kernels::block_scale(0x7fc00000U, table))) << name;
    EXPECT_TRUE(std::isinf(kernels::block_scale(0x7f800000U, table))) << name;
    EXPECT_EQ(kernels::block_scale(0, table), 1e-12F / table.scale_divisor) << name;
  }
}

TEST(Codebook, DecodesWhatItEncodesAtEveryLength) {
  for (const auto& [name, codebook] : all()) {
    const kernels::CodebookTable table = codebook.table();
    std::vector<float> values;
    for (int i = 0; i < 600; ++i) {
      const float value = codebook.values()[static_cast<size_t>(i % codebook.num_codes())];
      values.push_back(std::isnan(value) ? 0.5F : value);
    }
    const bool fits_packed = codebook.num_codes() == 16;
    for (const int64_t count : {0, 2, 14, 16, 30, 32, 62, 64, 66, 128, 254, 256, 258, 600}) {
      std::vector<uint8_t> codes(600);
      std::vector<float> back(600, -7.0F);
      kernels::encode(codes.data(), values.data(), count, 1.0F, table);
      kernels::decode(back.data(), codes.data(), count, 0.25F, table);
      for (int64_t i = 0; i < count; ++i) {
        ASSERT_EQ(back[static_cast<size_t>(i)], 0.25F * values[static_cast<size_t>(i)])
            << name << " " << i;
      }
      ASSERT_EQ(back[static_cast<size_t>(count) % 600], count == 600 ? back[0] : -7.0F) << name;
      if (fits_packed) {
        kernels::encode_packed(codes.data(), values.data(), count, 1.0F, table);
        kernels::decode_packed(back.data(), codes.data(), count, 1.0F, table);
        for (int64_t i = 0; i < count; ++i) {
          ASSERT_EQ(back[static_cast<size_t>(i)], values[static_cast<size_t>(i)]) << name;
        }
        if (count > 0) {  // the even index in the upper half
          EXPECT_EQ(codes[0] >> 4, codebook.encode(values[0]));
        }
      }
    }
  }
}

}  // namespace
}  // namespace narrowgauge::optim
