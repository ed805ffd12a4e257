#include "checkpoint/sharded_checkpoint.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "checkpoint/durable_file.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::checkpoint {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// Whole tensors of odd sizes and several dtypes; `salt` makes their contents differ.
std::map<std::string, at::Tensor> make_tensors(int64_t salt) {
  return {
      {"weight", at::arange(7 * 5).view({7, 5}).to(at::kFloat).add(salt)},
      {"one_row", at::full({1, 3}, 2.5, at::kBFloat16).add(salt)},
      {"moments", at::arange(12).view({3, 2, 2}).to(at::kDouble).add(salt)},
      {"codes", at::arange(9).to(at::kByte).add(salt)},
      {"no_rows", at::empty({0, 4})},
      {"no_columns", at::empty({4, 0})},
      {"count", at::full({}, 41, at::kLong).add(salt)},
  };
}

// Rank `rank` of `size`'s rows of each tensor, in chunks of ceil(rows / size) as FSDP cuts them.
// Scalars are replicated.
std::vector<ShardChunk> cut(const std::map<std::string, at::Tensor>& tensors, int rank, int size) {
  std::vector<ShardChunk> chunks;
  for (const auto& [name, tensor] : tensors) {
    if (tensor.dim() == 0) {
      chunks.push_back({name, tensor.clone(), {}, 0});
      continue;
    }
    const int64_t rows = tensor.size(0);
    const int64_t step = (rows + size - 1) / size;
    const int64_t begin = std::min(rank * step, rows);
    const int64_t end = std::min(begin + step, rows);
    chunks.push_back({name, tensor.slice(0, begin, end).clone(), tensor.sizes().vec(), begin});
  }
  return chunks;
}

void zero(std::vector<ShardChunk>& chunks) {
  for (const ShardChunk& chunk : chunks) {
    chunk.local.zero_();
  }
}

bool all_equal(const std::vector<ShardChunk>& a, const std::vector<ShardChunk>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const auto& x, const auto& y) { return x.local.equal(y.local); });
}

class ShardedCheckpoint : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* root = std::getenv("TEST_TMPDIR");
    std::string name = (fs::path(root ? root : "/tmp") / "sharded.XXXXXX").string();
    root_ = ::mkdtemp(name.data());
    folder_ = root_ / "checkpoint";
  }
  void TearDown() override { fs::remove_all(root_); }

  using Cut = std::function<std::vector<ShardChunk>(int rank, int size)>;

  void write(int size, const Cut& cut_rank, const std::string& state = R"({"lr":0.1})") {
    fs::remove_all(folder_);
    fs::create_directory(folder_);
    testing::run_ranks(size, [&](comm::Communicator& communicator) {
      write_sharded_checkpoint(folder_, 5, cut_rank(communicator.rank(), size), state,
                               communicator);
    });
  }
  void write(int size) {
    write(size, [&](int rank, int size) { return cut(tensors_, rank, size); });
  }
  std::string write_error(int size, const Cut& cut_rank) {
    try {
      write(size, cut_rank);
    } catch (const std::exception& error) {
      return error.what();
    }
    return "";
  }

  // The error of loading everything, or "" when what was loaded is bit-equal. What a failing load
  // leaves must be what was there before.
  std::string load_error() {
    const std::vector<ShardChunk> expected = cut(tensors_, 0, 1);
    std::vector<ShardChunk> loaded = cut(tensors_, 0, 1);
    zero(loaded);
    try {
      Checkpoint::open(folder_).load(loaded);
    } catch (const std::exception& error) {
      for (const ShardChunk& chunk : loaded) {
        EXPECT_EQ(chunk.local.to(at::kDouble).abs().sum().item<double>(), 0.0) << chunk.name;
      }
      EXPECT_THAT(error.what(), HasSubstr(folder_.string()));
      return error.what();
    }
    EXPECT_TRUE(all_equal(loaded, expected));
    return "";
  }

  fs::path root_;
  fs::path folder_;
  std::map<std::string, at::Tensor> tensors_ = make_tensors(0);
};

TEST_F(ShardedCheckpoint, EveryWorldSizeLoadsIntoEveryOther) {
  for (int from = 1; from <= 4; ++from) {
    write(from);
    const Checkpoint checkpoint = Checkpoint::open(folder_);
    EXPECT_EQ(checkpoint.manifest().world_size, from);
    EXPECT_EQ(checkpoint.manifest().step, 5);
    EXPECT_EQ(checkpoint.manifest().state_json, R"({"lr":0.1})");
    checkpoint.verify();
    for (int to = 1; to <= 4; ++to) {
      for (int rank = 0; rank < to; ++rank) {
        const std::vector<ShardChunk> expected = cut(tensors_, rank, to);
        std::vector<ShardChunk> loaded = cut(tensors_, rank, to);
        zero(loaded);
        checkpoint.load(loaded);
        EXPECT_TRUE(all_equal(loaded, expected)) << from << " -> " << to << " rank " << rank;
      }
    }
  }
}

TEST_F(ShardedCheckpoint, ReplicasAreWrittenOnce) {
  write(4,
        [&](int rank, int) { return cut(tensors_, rank % 2, 2); });  // two replicas of two shards
  EXPECT_EQ(load_error(), "");
  EXPECT_TRUE(fs::exists(folder_ / "rank-00001.safetensors"));
  EXPECT_FALSE(fs::exists(folder_ / "rank-00002.safetensors"));
}

TEST_F(ShardedCheckpoint, OneRankMayHoldSeveralChunksOfATensor) {
  write(2, [&](int rank, int) {  // rows dealt like cards
    std::vector<ShardChunk> chunks;
    for (const auto& [name, tensor] : tensors_) {
      if (tensor.dim() == 0 || tensor.size(0) == 0) {
        chunks.push_back({name, tensor, tensor.sizes().vec(), 0});
      }
      for (int64_t row = rank; tensor.dim() > 0 && row < tensor.size(0); row += 2) {
        chunks.push_back({name, tensor.slice(0, row, row + 1), tensor.sizes().vec(), row});
      }
    }
    return chunks;
  });
  EXPECT_EQ(load_error(), "");
}

TEST_F(ShardedCheckpoint, RowsThatNobodyOrSeveralHoldAreRefused) {
  EXPECT_THAT(write_error(2,
                          [&](int rank, int) {
                            auto chunks = cut(tensors_, rank, 3);
                            return chunks;  // the third rank's rows are missing
                          }),
              HasSubstr("rows"));
  EXPECT_THAT(write_error(2,
                          [&](int rank, int) {
                            return std::vector<ShardChunk>{{"w", at::ones({3}), {5}, 2 * rank}};
                          }),
              HasSubstr("overlap"));
  EXPECT_THAT(
      write_error(2,
                  [&](int rank, int) {
                    const auto dtype = rank == 0 ? at::kFloat : at::kDouble;
                    return std::vector<ShardChunk>{{"w", at::ones({2}, dtype), {4}, 2 * rank}};
                  }),
      HasSubstr("F64"));
}

TEST_F(ShardedCheckpoint, AFailureOfOneRankIsEveryRanksWithItsReason) {
  fs::create_directory(folder_);
  std::vector<std::string> errors(3);
  testing::run_ranks(3, [&](comm::Communicator& communicator) {
    auto chunks = cut(tensors_, communicator.rank(), 3);
    if (communicator.rank() == 1) {
      chunks[0].row_begin = 100;
    }
    try {
      write_sharded_checkpoint(folder_, 1, chunks, "{}", communicator);
    } catch (const std::exception& error) {
      errors[communicator.rank()] = error.what();
    }
  });
  EXPECT_THAT(errors[0], HasSubstr("rank 1: checkpoint: tensor 'codes': expected rows within"));
  EXPECT_THAT(errors[1], HasSubstr("expected rows within [0, 9]"));
  EXPECT_THAT(errors[2], HasSubstr("rank 1"));
}

TEST_F(ShardedCheckpoint, StateMustBeAnObject) {
  const auto cut_rank = [&](int rank, int size) { return cut(tensors_, rank, size); };
  EXPECT_THROW(write(2, cut_rank, "[1]"), std::runtime_error);
  EXPECT_THROW(write(2, cut_rank, "{"), std::runtime_error);
  write(2, cut_rank, R"({"text":"ü\n","nested":{"x":1e-30}})");
  EXPECT_THAT(Checkpoint::open(folder_).manifest().state_json, HasSubstr("1e-30"));
}

void put_byte(const fs::path& path, size_t offset, char byte) {
  std::fstream stream(path, std::ios::binary | std::ios::in | std::ios::out);
  stream.seekp(static_cast<std::streamoff>(offset));
  stream.put(byte);
}

TEST_F(ShardedCheckpoint, EverySingleBitFlipIsDetectedOrHarmless) {
  write(2);
  size_t detected = 0;
  size_t total = 0;
  for (const auto& entry : fs::directory_iterator(folder_)) {
    const std::string bytes = read_file(entry.path());
    for (size_t i = 0; i < bytes.size(); ++i) {
      for (int bit = 0; bit < 8; ++bit) {
        put_byte(entry.path(), i, static_cast<char>(bytes[i] ^ (1 << bit)));
        detected += !load_error().empty();  // which checks that what loads is bit-equal
        ++total;
      }
      put_byte(entry.path(), i, bytes[i]);
    }
  }
  EXPECT_EQ(load_error(), "");
  // Harmless: white space of the manifest, the metadata of a rank's file.
  EXPECT_GT(detected, total * 9 / 10);
}

TEST_F(ShardedCheckpoint, TruncatedAndMissingFilesAreNamed) {
  write(2);
  for (const char* name : {"rank-00000.safetensors", "rank-00001.safetensors", "manifest.json"}) {
    const std::string bytes = read_file(folder_ / name);
    for (size_t size = bytes.size() - 2; size > 0; size -= std::min<size_t>(size, 7)) {
      fs::resize_file(folder_ / name, size);
      EXPECT_THAT(load_error(), HasSubstr(name)) << size;
    }
    fs::remove(folder_ / name);
    EXPECT_THAT(load_error(), HasSubstr(name));
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
  }
  EXPECT_EQ(load_error(), "");
}

TEST_F(ShardedCheckpoint, DestinationsMustFit) {
  write(2);
  const Checkpoint checkpoint = Checkpoint::open(folder_);
  const auto load = [&](ShardChunk chunk) {
    const std::vector<ShardChunk> chunks = {std::move(chunk)};
    checkpoint.load(chunks);
  };
  EXPECT_THROW(load({"absent", at::zeros({1}), {1}, 0}), std::runtime_error);
  EXPECT_THROW(load({"weight", at::zeros({7, 5}, at::kHalf), {7, 5}, 0}), std::runtime_error);
  EXPECT_THROW(load({"weight", at::zeros({7, 6}), {7, 6}, 0}), std::runtime_error);
  EXPECT_THROW(load({"weight", at::zeros({3, 5}), {7, 5}, 5}), c10::Error);
  load({"weight", at::zeros({2, 5}), {7, 5}, 5});
}

}  // namespace
}  // namespace narrowgauge::checkpoint
