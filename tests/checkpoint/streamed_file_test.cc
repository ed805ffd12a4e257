#include "checkpoint/streamed_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "checkpoint/durable_file.h"

namespace narrowgauge::checkpoint {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

constexpr size_t kBuffer = StreamedFile::kBufferBytes;

// No two regions alike, whatever their alignment.
std::string numbered(size_t size) {
  std::string bytes(size, '\0');
  uint64_t state = 1;
  for (char& byte : bytes) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    byte = static_cast<char>(state >> 56);
  }
  return bytes;
}

// A folder on a disk and one in memory, where O_DIRECT means nothing or is refused.
class StreamedFileTest : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    const char* root = std::getenv("TEST_TMPDIR");
    const fs::path parent = GetParam() ? "/dev/shm" : (root ? root : "/tmp");
    std::string name = (parent / "streamed.XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  bool is_empty() const { return fs::is_empty(folder_); }

  fs::path folder_;
};

TEST_P(StreamedFileTest, HoldsWhatWasAppendedInPiecesOfAnySize) {
  for (const size_t size : {size_t{0}, size_t{1}, size_t{4095}, kBuffer - 1, kBuffer, kBuffer + 1,
                            3 * kBuffer, 4 * kBuffer + 4096, 7 * kBuffer + 123}) {
    const std::string bytes = numbered(size);
    for (const size_t piece : {size_t{4093}, size_t{262144}, kBuffer, 2 * kBuffer + 5}) {
      StreamedFile file(folder_ / "file", size);
      for (size_t done = 0; done < size; done += piece) {
        std::string part = bytes.substr(done, piece);
        file.append(part.data(), part.size());
        std::fill(part.begin(), part.end(), '?');
      }
      EXPECT_FALSE(fs::exists(folder_ / "file"));
      file.commit();
      EXPECT_TRUE(read_file(folder_ / "file") == bytes) << size << " in pieces of " << piece;
      fs::remove(folder_ / "file");
    }
  }
  EXPECT_TRUE(is_empty());
}

TEST_P(StreamedFileTest, NothingStaysOfAFileThatIsNotCommitted) {
  const std::string bytes = numbered(5 * kBuffer + 77);
  {
    StreamedFile file(folder_ / "file", bytes.size());
    file.append(bytes.data(), bytes.size());
  }
  EXPECT_TRUE(is_empty());
}

TEST_P(StreamedFileTest, RoomThatIsMissingIsKnownBeforeAnythingIsWritten) {
  EXPECT_THAT([&] { StreamedFile(folder_ / "file", uint64_t{1} << 60); },
              ThrowsMessage<std::runtime_error>(HasSubstr("cannot reserve")));
  EXPECT_TRUE(is_empty());
}

TEST_P(StreamedFileTest, AWriteThatFailsIsTold) {
  const std::string bytes = numbered(8 * kBuffer);
  const auto previous = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit limit = {3 * kBuffer + 1000, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  EXPECT_THAT(
      [&] {
        StreamedFile file(folder_ / "file", kBuffer);
        file.append(bytes.data(), bytes.size());
        file.commit();
      },
      ThrowsMessage<std::runtime_error>(HasSubstr("free space or raise the limit")));
  // The tail alone does not fit.
  EXPECT_THAT(
      [&] {
        StreamedFile file(folder_ / "file", kBuffer);
        file.append(bytes.data(), 3 * kBuffer + 1001);
        file.commit();
      },
      ThrowsMessage<std::runtime_error>(HasSubstr("free space or raise the limit")));
  EXPECT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, previous);
  EXPECT_TRUE(is_empty());
}

// Offsets and addresses that O_DIRECT refuses stand for a file system that does.
TEST_P(StreamedFileTest, WritesThatMustGoThroughTheCacheDo) {
  const std::string bytes = numbered(3 * 4096 + 5);
  DurableFile file(folder_ / "file");
  file.write_past_cache(1, bytes.data() + 1, 4096);
  file.write_past_cache(4097, bytes.data() + 4097, bytes.size() - 4097);
  file.write_at(0, bytes.data(), 1);
  file.commit();
  EXPECT_TRUE(read_file(folder_ / "file") == bytes);
}

INSTANTIATE_TEST_SUITE_P(Folders, StreamedFileTest, ::testing::Bool(), [](const auto& info) {
  return info.param ? std::string("in_memory") : std::string("on_disk");
});

}  // namespace
}  // namespace narrowgauge::checkpoint
