#include "checkpoint/safetensors.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>

namespace narrowgauge::checkpoint {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class Safetensors : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* root = std::getenv("TEST_TMPDIR");
    std::string name = (fs::path(root ? root : "/tmp") / "safetensors.XXXXXX").string();
    folder_ = ::mkdtemp(name.data());
    path_ = folder_ / "model.safetensors";
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path folder_;
  fs::path path_;
};

std::string with_length(const std::string& json, const std::string& data = "") {
  const uint64_t length = json.size();
  std::string bytes(sizeof(length), '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes + json + data;
}

void put(const fs::path& path, const std::string& bytes) {
  fs::remove(path);  // ext4 flushes a file that is truncated and written again
  std::ofstream(path, std::ios::binary) << bytes;
}

// The error of opening `bytes` as a file, or "" when it opens. Every tensor of a file that opens is
// read to its last byte, so that an offset outside the file would crash.
std::string open_error(const fs::path& path, const std::string& bytes) {
  put(path, bytes);
  try {
    const SafetensorsFile file = SafetensorsFile::open(path);
    for (const std::string& name : file.names()) {
      file.tensor(name).clone();
    }
    return "";
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(error.what(), HasSubstr(path.string()));
    return error.what();
  }
}

bool same_bytes(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         std::memcmp(a.contiguous().const_data_ptr(), b.contiguous().const_data_ptr(),
                     a.nbytes()) == 0;
}

TEST_F(Safetensors, EveryDtypeAndOddShapesRoundTripBitEqual) {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const auto dtype :
       {at::kBool, at::kByte, at::kChar, at::kShort, at::kInt, at::kLong, at::kHalf, at::kBFloat16,
        at::kFloat, at::kDouble, at::kFloat8_e4m3fn, at::kFloat8_e5m2}) {
    tensors.emplace_back(safetensors_dtype_name(dtype), at::arange(15).view({3, 5}).to(dtype));
  }
  tensors.emplace_back("scalar", at::ones({}, at::kDouble).mul(3.25));
  tensors.emplace_back("empty", at::empty({4, 0, 7}, at::kFloat));
  tensors.emplace_back("transposed", at::arange(6).view({2, 3}).to(at::kFloat).t());
  write_safetensors(path_, tensors, {{"format", "pt"}, {"note", "ü \"quoted\"\n"}});
  const SafetensorsFile file = SafetensorsFile::open(path_);
  EXPECT_EQ(file.names().size(), tensors.size());
  EXPECT_EQ(file.metadata().at("note"), "ü \"quoted\"\n");
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(file.dtype(name), tensor.scalar_type());
    EXPECT_EQ(at::IntArrayRef(file.sizes(name)), tensor.sizes());
    EXPECT_TRUE(same_bytes(file.tensor(name), tensor)) << name;
  }
  EXPECT_FALSE(fs::exists(path_.string() + ".tmp"));
}

TEST_F(Safetensors, RowsAreTheRowsAndViewsOutliveTheFile) {
  const at::Tensor whole = at::arange(24).view({6, 4}).to(at::kFloat);
  write_safetensors(path_, {{"w", whole}, {"none", at::empty({0, 3})}});
  at::Tensor rows;
  {
    const SafetensorsFile file = SafetensorsFile::open(path_);
    rows = file.rows("w", 2, 5);
    EXPECT_EQ(file.rows("w", 6, 6).size(0), 0);
    EXPECT_EQ(file.rows("none", 0, 0).numel(), 0);
    EXPECT_THROW(file.rows("w", 5, 7), c10::Error);
    EXPECT_THROW(file.rows("w", -1, 2), c10::Error);
    EXPECT_THROW(file.rows("w", 3, 2), c10::Error);
    EXPECT_THROW(file.tensor("absent"), c10::Error);
  }
  EXPECT_TRUE(same_bytes(rows, whole.slice(0, 2, 5)));
  rows.zero_();  // private to this process
  EXPECT_TRUE(same_bytes(SafetensorsFile::open(path_).tensor("w"), whole));
}

TEST_F(Safetensors, SameInputGivesSameBytesAndAlignedData) {
  const std::vector<std::pair<std::string, at::Tensor>> tensors = {
      {"odd", at::ones({3}, at::kByte)}, {"z", at::ones({2}, at::kDouble)}, {"a", at::ones({5})}};
  write_safetensors(path_, tensors);
  const std::string first = read_file(path_);
  write_safetensors(path_, tensors);
  EXPECT_EQ(read_file(path_), first);
  const SafetensorsHeader header = parse_safetensors_header(first, first.size(), "x");
  EXPECT_EQ(header.data_offset % 8, 0U);
  for (const auto& [name, entry] : header.tensors) {
    EXPECT_EQ(entry.begin % *safetensors_element_size(entry.dtype), 0U) << name;
  }
}

TEST_F(Safetensors, UnalignedDataOfOtherWritersIsRead) {
  const float value = 1.5F;
  std::string data = "x";
  data.append(reinterpret_cast<const char*>(&value), sizeof(value));
  put(path_, with_length(R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                         R"("f":{"dtype":"F32","shape":[],"data_offsets":[1,5]}})",
                         data));
  EXPECT_EQ(SafetensorsFile::open(path_).tensor("f").item<float>(), 1.5F);
}

std::string small_file(const fs::path& path) {
  write_safetensors(path,
                    {{"weight", at::arange(6).view({2, 3}).to(at::kFloat)},
                     {"bias", at::ones({3}, at::kBFloat16)}},
                    {{"format", "pt"}});
  return read_file(path);
}

TEST_F(Safetensors, TruncationAtEveryByteIsDetected) {
  const std::string bytes = small_file(path_);
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_NE(open_error(path_, bytes.substr(0, size)), "") << size;
  }
  EXPECT_EQ(open_error(path_, bytes), "");
  EXPECT_THAT(open_error(path_, bytes + "x"), HasSubstr("bytes of data"));
}

TEST_F(Safetensors, EveryHeaderBitFlipIsRefusedOrHarmless) {
  const std::string bytes = small_file(path_);
  const uint64_t header_end = parse_safetensors_header(bytes, bytes.size(), "x").data_offset;
  size_t refused = 0;
  for (uint64_t i = 0; i < header_end; ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = bytes;
      damaged[i] = static_cast<char>(damaged[i] ^ (1 << bit));
      refused += !open_error(path_, damaged).empty();
    }
  }
  // What opens has another name or another metadata text, or floats of the same size.
  EXPECT_GT(refused, header_end * 8 * 6 / 10);
}

TEST_F(Safetensors, LyingHeadersAreRefusedWithBothNumbers) {
  const std::string four(4, '\0');
  const auto entry = [](const std::string& shape, const std::string& offsets,
                        const std::string& dtype = "F32") {
    return R"({"w":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" +
           offsets + "}}";
  };
  const auto error = [&](const std::string& json, const std::string& data) {
    return open_error(path_, with_length(json, data));
  };
  EXPECT_EQ(error(entry("[1]", "[0,4]"), four), "");
  EXPECT_EQ(error("{}", ""), "");
  EXPECT_THAT(error(entry("[2]", "[0,4]"), four), HasSubstr("need 8 bytes, data_offsets give 4"));
  EXPECT_THAT(error(entry("[1]", "[0,8]"), four), HasSubstr("[0, 8] do not lie in the 4 bytes"));
  EXPECT_THAT(error(entry("[1]", "[4,0]"), four), HasSubstr("[4, 0]"));
  EXPECT_THAT(error(entry("[-1]", "[0,4]"), four), HasSubstr("got -1"));
  EXPECT_THAT(error(entry("[1]", "[-4,0]"), four), HasSubstr("data_offsets"));
  EXPECT_THAT(error(entry("[1.0]", "[0,4]"), four), HasSubstr("got 1.0"));
  EXPECT_THAT(error(entry("[4611686018427387904,4]", "[0,0]"), four), HasSubstr("2^63"));
  EXPECT_THAT(error(entry("[18446744073709551615]", "[0,4]"), four), HasSubstr("2^63-1"));
  EXPECT_THAT(error(entry("[0,4611686018427387904,4611686018427387904]", "[0,0]"), ""),
              HasSubstr("2^63"));
  EXPECT_THAT(error(entry("[1]", "[0,4]", "F4"), four), HasSubstr("unknown dtype 'F4'"));
  EXPECT_THAT(error(entry("[1]", "[0,4]"), four + four), HasSubstr("cover 4 bytes"));
  EXPECT_THAT(error(entry("[1]", "[4,8]"), four + four), HasSubstr("gap"));
  EXPECT_THAT(error("{\"a\":1}", ""), HasSubstr("expected exactly"));
  EXPECT_THAT(error("[]", ""), HasSubstr("'{'"));
  EXPECT_THAT(error("{\"a\":", ""), HasSubstr("not valid JSON"));
  EXPECT_THAT(error(R"({"__metadata__":{"a":1}})", ""), HasSubstr("a string"));
  EXPECT_THAT(error(std::string("{}\0{}", 5), ""), HasSubstr("NUL"));
}

TEST_F(Safetensors, OverlapsAndDuplicateKeysAreRefused) {
  const std::string a = R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  const std::string b = R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]})";
  const std::string data(12, '\0');
  EXPECT_THAT(open_error(path_, with_length("{" + a + "," + b + "}", data)), HasSubstr("overlap"));
  EXPECT_THAT(open_error(path_, with_length("{" + a + "," + a + "}", data)), HasSubstr("twice"));
  EXPECT_THAT(open_error(path_, with_length(R"({"a":{"dtype":"F32","dtype":"I32"}})")),
              HasSubstr("twice"));
}

TEST_F(Safetensors, HeaderLengthsAreBounded) {
  std::string bytes = with_length("{}");
  const auto set_length = [&](uint64_t length) {
    std::memcpy(bytes.data(), &length, sizeof(length));
    return open_error(path_, bytes);
  };
  EXPECT_THAT(set_length(100'000'001), HasSubstr("100000001"));
  EXPECT_THAT(set_length(UINT64_MAX), HasSubstr("18446744073709551615"));
  EXPECT_THAT(set_length(3), HasSubstr("claims 3 bytes, the file has 2"));
  EXPECT_THAT(set_length(0), HasSubstr("'{'"));
  EXPECT_THAT(open_error(path_, with_length(std::string(1'000'000, '{'))), HasSubstr("not valid"));
  EXPECT_THAT(open_error(path_, with_length("{\"a\":" + std::string(1'000'000, '['))),
              HasSubstr("nests deeper"));
}

TEST_F(Safetensors, WriterRefusesWhatWasNotAnnounced) {
  SafetensorsWriter writer(path_, {{"a", at::kFloat, {2}}, {"b", at::kFloat, {2}}}, {});
  EXPECT_THROW(writer.write("c", at::ones({2})), c10::Error);
  EXPECT_THROW(writer.write("a", at::ones({3})), c10::Error);
  EXPECT_THROW(writer.write("a", at::ones({2}, at::kDouble)), c10::Error);
  writer.write("a", at::ones({2}));
  EXPECT_THROW(writer.write("a", at::ones({2})), c10::Error);
  EXPECT_THROW(writer.commit(), c10::Error);
  EXPECT_FALSE(fs::exists(path_));
  EXPECT_THROW(write_safetensors(path_, {{"a", at::ones({1})}, {"a", at::ones({1})}}), c10::Error);
  EXPECT_THROW(write_safetensors(path_, {{"c", at::ones({1}, at::kComplexFloat)}}), c10::Error);
}

// In a child, since a file-size limit holds for the whole process.
TEST_F(Safetensors, FullDiskLeavesTheOldFileAndNoTemporary) {
  const std::string old = small_file(path_);
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {4096, 4096};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    try {
      write_safetensors(path_, {{"big", at::zeros({4096})}});
    } catch (const std::runtime_error& error) {
      ::_exit(std::string(error.what()).find(path_.string()) != std::string::npos ? 0 : 2);
    }
    ::_exit(1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_EQ(read_file(path_), old);
  EXPECT_FALSE(fs::exists(path_.string() + ".tmp"));
}

TEST_F(Safetensors, MissingFolderAndNonFilesAreNamed) {
  EXPECT_THROW(write_safetensors(folder_ / "no" / "x", {{"a", at::ones({1})}}), std::runtime_error);
  EXPECT_THROW(SafetensorsFile::open(folder_), std::runtime_error);
  EXPECT_THROW(SafetensorsFile::open(folder_ / "absent"), std::runtime_error);
}

}  // namespace
}  // namespace narrowgauge::checkpoint
