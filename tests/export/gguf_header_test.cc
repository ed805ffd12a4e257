#include "export/gguf_header.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <stdexcept>

namespace narrowgauge::exports {
namespace {

GgufMetadata every_kind() {
  return {{"u32", uint32_t{7}},
          {"i32", int32_t{-7}},
          {"f32", 0.5F},
          {"yes", true},
          {"no", false},
          {"text", std::string("a\0b", 3)},
          {"u64", uint64_t{1} << 40},
          {"i64", int64_t{-1} << 40},
          {"f64", 0.1},
          {"texts", std::vector<std::string>{"", "one", "two"}},
          {"floats", std::vector<float>{1, -2}},
          {"numbers", std::vector<int32_t>{1, 2, 3}},
          {"none", std::vector<std::string>{}}};
}

std::vector<GgufTensorInfo> some_tensors() {
  std::vector<GgufTensorInfo> tensors = {{"plain", {3, 5}, GgmlType::kF32, 0},
                                         {"half", {7}, GgmlType::kF16, 0},
                                         {"q4", {2, 64}, GgmlType::kQ4_0, 0},
                                         {"q8", {3, 32}, GgmlType::kQ8_0, 0},
                                         {"bf16", {2, 3, 4}, GgmlType::kBf16, 0}};
  return tensors;
}

// A whole file of zeros behind its header.
std::string whole_file() {
  auto tensors = some_tensors();
  const uint64_t data = lay_out_gguf_tensors(tensors);
  std::string bytes = gguf_header_bytes(every_kind(), tensors);
  bytes.resize(bytes.size() + data, '\0');
  return bytes;
}

std::string error_of(const std::string& bytes) {
  try {
    parse_gguf_header(bytes, bytes.size(), "test.gguf");
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

// `text` stands once in `bytes`; what follows it is overwritten with `value`.
template <typename T>
std::string with_value_behind(std::string bytes, const std::string& text, T value, size_t skip) {
  const size_t position = bytes.find(text);
  EXPECT_NE(position, std::string::npos);
  std::memcpy(bytes.data() + position + text.size() + skip, &value, sizeof(value));
  return bytes;
}

TEST(GgufHeader, ReadsWhatItWrites) {
  const std::string bytes = whole_file();
  const GgufHeader header = parse_gguf_header(bytes, bytes.size(), "test.gguf");
  EXPECT_EQ(header.metadata, every_kind());
  auto tensors = some_tensors();
  lay_out_gguf_tensors(tensors);
  ASSERT_EQ(header.tensors.size(), tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    EXPECT_EQ(header.tensors[i].name, tensors[i].name);
    EXPECT_EQ(header.tensors[i].sizes, tensors[i].sizes);
    EXPECT_EQ(header.tensors[i].type, tensors[i].type);
    EXPECT_EQ(header.tensors[i].offset, tensors[i].offset);
    EXPECT_EQ(tensors[i].offset % kGgufAlignment, 0U);
  }
  EXPECT_EQ(header.data_offset % kGgufAlignment, 0U);
  EXPECT_EQ(find_gguf_value(header.metadata, "absent"), nullptr);
}

TEST(GgufHeader, BytesOfBlocks) {
  EXPECT_EQ(gguf_tensor_bytes(GgmlType::kQ4_0, {2, 64}, "t"), 2U * 2 * 18);
  EXPECT_EQ(gguf_tensor_bytes(GgmlType::kQ8_0, {3, 32}, "t"), 3U * 34);
  EXPECT_EQ(gguf_tensor_bytes(GgmlType::kF32, {3, 5}, "t"), 60U);
  EXPECT_THROW(gguf_tensor_bytes(GgmlType::kQ4_0, {64, 48}, "t"), std::invalid_argument);
  EXPECT_THROW(gguf_tensor_bytes(GgmlType::kF32, {3, 0}, "t"), std::invalid_argument);
  EXPECT_THROW(gguf_tensor_bytes(GgmlType::kF32, {1, 1, 1, 1, 1}, "t"), std::invalid_argument);
  EXPECT_THROW(gguf_tensor_bytes(GgmlType::kF32, {INT64_MAX, 8}, "t"), std::invalid_argument);
}

TEST(GgufHeader, NamesTwiceAreRefused) {
  EXPECT_THROW(gguf_header_bytes({{"a", true}, {"a", false}}, {}), std::invalid_argument);
  EXPECT_THROW(gguf_header_bytes({}, {{"t", {1}}, {"t", {1}}}), std::invalid_argument);
}

TEST(GgufHeader, EveryTruncationIsAnError) {
  const std::string bytes = whole_file();
  // The padding behind the last tensor carries nothing.
  const size_t needed = bytes.size() - (kGgufAlignment - 2 * 3 * 4 * 2 % kGgufAlignment);
  for (size_t size = 0; size < needed; ++size) {
    EXPECT_NE(error_of(bytes.substr(0, size)), "") << size;
  }
  EXPECT_EQ(error_of(bytes), "");
}

TEST(GgufHeader, LiesAreErrorsBeforeTheyCostMemory) {
  const std::string bytes = whole_file();
  const auto huge = uint64_t{1} << 60;
  std::string tensors = bytes;
  std::memcpy(tensors.data() + 8, &huge, sizeof(huge));
  EXPECT_NE(error_of(tensors).find("claims"), std::string::npos);
  std::string keys = bytes;
  std::memcpy(keys.data() + 16, &huge, sizeof(huge));
  EXPECT_NE(error_of(keys).find("claims"), std::string::npos);
  // Kind and element kind stand between the key and the count.
  EXPECT_NE(error_of(with_value_behind(bytes, "floats", huge, 8)), "");
  EXPECT_NE(error_of(with_value_behind(bytes, "texts", huge, 8)), "");
  EXPECT_NE(error_of(with_value_behind(bytes, "text", huge, 4)), "");
  EXPECT_NE(error_of(with_value_behind(bytes, "floats", uint32_t{99}, 4)), "");
  EXPECT_NE(error_of(with_value_behind(bytes, "yes", uint8_t{2}, 4)), "");
  EXPECT_NE(error_of(with_value_behind(bytes, "plain", uint32_t{9}, 0)), "");          // dimensions
  EXPECT_NE(error_of(with_value_behind(bytes, "plain", uint64_t{0}, 4)), "");          // a size
  EXPECT_NE(error_of(with_value_behind(bytes, "plain", huge, 4)), "");                 // a size
  EXPECT_NE(error_of(with_value_behind(bytes, "plain", uint32_t{3}, 4 + 16)), "");     // a type
  EXPECT_NE(error_of(with_value_behind(bytes, "half", uint64_t{0}, 4 + 8 + 4)), "");   // overlap
  EXPECT_NE(error_of(with_value_behind(bytes, "half", uint64_t{65}, 4 + 8 + 4)), "");  // alignment
  EXPECT_NE(error_of("GGML" + bytes.substr(4)), "");
}

TEST(GgufHeader, FlippedBitsNeverCrash) {
  const std::string bytes = whole_file();
  std::mt19937 random(5);
  for (int i = 0; i < 20000; ++i) {
    std::string damaged = bytes;
    for (int flips = 0; flips < 3; ++flips) {
      damaged[random() % 700] ^= static_cast<char>(1U << (random() % 8));
    }
    error_of(damaged);
  }
}

TEST(GgufHeader, KindsItDoesNotKeepArePassedOver) {
  // "k" is an array of two arrays, of one u16 each; then "s", an i8.
  std::string bytes = "GGUF";
  const auto append = [&](auto value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
  };
  append(uint32_t{3});
  append(uint64_t{0});
  append(uint64_t{2});
  append(uint64_t{1});
  bytes += "k";
  append(uint32_t{9});
  append(uint32_t{9});
  append(uint64_t{2});
  for (int i = 0; i < 2; ++i) {
    append(uint32_t{2});
    append(uint64_t{1});
    append(uint16_t{5});
  }
  append(uint64_t{1});
  bytes += "s";
  append(uint32_t{1});
  append(int8_t{-1});
  bytes.resize((bytes.size() + 31) / 32 * 32, '\0');
  EXPECT_TRUE(parse_gguf_header(bytes, bytes.size(), "test.gguf").metadata.empty());
}

}  // namespace
}  // namespace narrowgauge::exports
