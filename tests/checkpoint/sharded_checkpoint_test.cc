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
#include <limits>

#include "checkpoint/checkpoint_diff.h"
#include "checkpoint/checkpoint_saver.h"
#include "checkpoint/durable_file.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/whole_tensors.h"
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
    folder_ = root_ / "step-00000005";
  }
  void TearDown() override { fs::remove_all(root_); }

  using Cut = std::function<std::vector<ShardChunk>(int rank, int size)>;

  void write(int size, const Cut& cut_rank, const std::string& state = R"({"lr":0.1})") {
    fs::remove_all(folder_);
    testing::run_ranks(size, [&](comm::Communicator& communicator) {
      save_checkpoint(root_, 5, cut_rank(communicator.rank(), size), state, communicator);
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
    CheckpointReader::open(folder_).verify();
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

TEST_F(ShardedCheckpoint, ReplicasShareTheWritingAndWriteNothingTwice) {
  // Two replicas of two shards: ranks 0 and 2 hold the same rows, and so do 1 and 3.
  write(4, [&](int rank, int) { return cut(tensors_, rank % 2, 2); });
  EXPECT_EQ(load_error(), "");
  uint64_t bytes = 0;
  for (const auto& [name, tensor] : tensors_) {
    bytes += tensor.nbytes();
  }
  const CheckpointManifest manifest = Checkpoint::open(folder_).manifest();
  EXPECT_EQ(size_bytes(manifest), bytes);
  std::map<std::string, uint64_t> by_file;
  uint64_t written = 0;
  for (const auto& [name, tensor] : manifest.tensors) {
    for (const ManifestChunk& chunk : tensor.chunks) {
      by_file[chunk.file] += size_bytes(tensor, chunk.row_end - chunk.row_begin);
      written += size_bytes(tensor, chunk.row_end - chunk.row_begin);
    }
  }
  EXPECT_EQ(written, bytes);
  EXPECT_EQ(by_file.size(), 4U);
  for (const auto& [file, share] : by_file) {
    EXPECT_GE(share, bytes / 8) << file;  // a fair share would be a quarter
  }
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
  std::vector<std::string> errors(3);
  testing::run_ranks(3, [&](comm::Communicator& communicator) {
    auto chunks = cut(tensors_, communicator.rank(), 3);
    if (communicator.rank() == 1) {
      chunks[0].row_begin = 100;
    }
    try {
      save_checkpoint(root_, 5, chunks, "{}", communicator);
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

// What verifying all of it says; "" where nothing is wrong.
std::string verify_error(const fs::path& folder) {
  try {
    CheckpointReader::open(folder).verify();
    return "";
  } catch (const std::exception& error) {
    return error.what();
  }
}

TEST_F(ShardedCheckpoint, EveryFlipOfEveryByteIsFoundAndNamed) {
  write(2);
  ASSERT_EQ(verify_error(folder_), "");
  for (const auto& entry : fs::directory_iterator(folder_)) {
    const std::string bytes = read_file(entry.path());
    const std::string file = entry.path().filename().string();
    for (size_t i = 0; i < bytes.size(); ++i) {
      // Every bit alone, and space <-> tab, newline, which JSON takes for the same.
      for (const int mask : {1, 2, 4, 8, 16, 32, 64, 128, 0x29, 0x2a, 0x2d, 0xff}) {
        put_byte(entry.path(), i, static_cast<char>(bytes[i] ^ mask));
        const std::string error = verify_error(folder_);
        ASSERT_THAT(error, HasSubstr(file)) << "byte " << i << " ^ " << mask;
        if (file != kManifestName) {
          ASSERT_THAT(error, HasSubstr("tensor '")) << "byte " << i << " ^ " << mask;
        }
      }
      ASSERT_NE(load_error(), "") << file << ", byte " << i;  // and nothing is loaded
      put_byte(entry.path(), i, bytes[i]);
    }
  }
  EXPECT_EQ(verify_error(folder_), "");
  EXPECT_EQ(load_error(), "");
}

TEST_F(ShardedCheckpoint, EveryTruncationAndExtensionIsFoundAndNamed) {
  write(2);
  for (const char* name : {"rank-00000.safetensors", "rank-00001.safetensors", "manifest.json"}) {
    const std::string bytes = read_file(folder_ / name);
    for (size_t size = 0; size <= bytes.size() + 1; ++size) {
      if (size == bytes.size()) {
        continue;
      }
      fs::resize_file(folder_ / name, size);
      const std::string error = verify_error(folder_);
      ASSERT_THAT(error, HasSubstr(name)) << size;
      if (std::string(name) != kManifestName) {
        ASSERT_THAT(error, HasSubstr("tensor '")) << size;
      }
      std::ofstream(folder_ / name, std::ios::binary) << bytes;
    }
  }
  EXPECT_EQ(verify_error(folder_), "");
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

TEST_F(ShardedCheckpoint, DifferencesAreSeenThroughAnySharding) {
  for (const int size : {1, 3}) {
    testing::run_ranks(size, [&](comm::Communicator& communicator) {
      save_checkpoint(root_, size, cut(tensors_, communicator.rank(), size), R"({"x":[1]})",
                      communicator);
    });
  }
  const auto diff = [&](int64_t a, int64_t b) {
    CheckpointReader first = CheckpointReader::open(root_ / ("step-0000000" + std::to_string(a)));
    CheckpointReader second = CheckpointReader::open(root_ / ("step-0000000" + std::to_string(b)));
    std::string text;
    for (const CheckpointDifference& difference : diff_checkpoints(first, second)) {
      text += difference.name + ": " + difference.text + "\n";
    }
    return text;
  };
  EXPECT_EQ(diff(1, 3), "");
  tensors_["weight"][6][4] += 2.5;
  tensors_["one_row"][0][1] = std::numeric_limits<double>::quiet_NaN();
  tensors_["codes"][3] += 1;
  tensors_.erase("count");
  tensors_["no_rows"] = at::empty({0, 5});
  testing::run_ranks(2, [&](comm::Communicator& communicator) {
    save_checkpoint(root_, 2, cut(tensors_, communicator.rank(), 2), R"({"x":[2],"y":null})",
                    communicator);
  });
  EXPECT_EQ(diff(3, 2),
            "state.x: [1] against [2]\n"
            "state.y: only in the second: null\n"
            "codes: 1 of 9 elements differ\n"
            "count: only in the first, I64 []\n"
            "no_rows: F32 [0,4] against F32 [0,5]\n"
            "one_row: 1 of 3 elements differ, by at most 0, NaN or infinity among them\n"
            "weight: 1 of 35 elements differ, by at most 2.5\n");
}

TEST_F(ShardedCheckpoint, WholeTensorsAreOneFileWhateverWroteThem) {
  std::string first;
  for (const int size : {1, 2, 3}) {
    write(size);
    CheckpointReader reader = CheckpointReader::open(folder_);
    const fs::path path = root_ / "whole.safetensors";
    write_whole_tensors(reader, "", path);
    const SafetensorsFile file = SafetensorsFile::open(path);
    for (const auto& [name, tensor] : tensors_) {
      EXPECT_TRUE(file.tensor(name).equal(tensor)) << name;
    }
    first = first.empty() ? read_file(path) : first;
    EXPECT_EQ(read_file(path), first) << size;
    write_whole_tensors(reader, "no_", path);
    EXPECT_EQ(SafetensorsFile::open(path).names(), (std::vector<std::string>{"columns", "rows"}));
    EXPECT_THROW(write_whole_tensors(reader, "absent", path), std::runtime_error);
  }
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
