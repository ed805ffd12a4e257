// Tensors of a GPU saved beside training: the copy is complete when start() returns, and loading
// fills tensors of a GPU.

#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "checkpoint/checkpoint_saver.h"
#include "checkpoint/checkpoint_store.h"
#include "checkpoint/sharded_checkpoint.h"
#include "comm/self_communicator.h"
#include "tests/data/temporary_directory.h"
#include "tests/support/numerics.h"

namespace narrowgauge::checkpoint {
namespace {

using narrowgauge::testing::expect_bitwise_equal;
using Staging = CheckpointSaver::Staging;

std::vector<ShardChunk> chunks_on_gpu() {
  const auto options = at::TensorOptions(at::kCUDA);
  return {{"fp32", at::randn({1 << 12, 1 << 12}, options), {1 << 12, 1 << 12}, 0},
          {"bf16", at::randn({37, 19}, options).to(at::kBFloat16), {37, 19}, 0},
          {"transposed", at::randn({65, 33}, options).t(), {33, 65}, 0},
          {"scalar", at::full({}, 7, options.dtype(at::kLong)), {}, 0}};
}

TEST(CheckpointOnGpu, SavesWhatWasThereAtTheStart) {
  for (const Staging staging : {Staging::kCopy, Staging::kInPlace}) {
    const data::TemporaryDirectory directory;
    const std::filesystem::path store = directory.path();
    comm::SelfCommunicator self;
    CheckpointSaver saver(store, 0, self);
    for (const int64_t step : {1, 2}) {  // the second reuses the page-locked copies
      const std::vector<ShardChunk> chunks = chunks_on_gpu();
      std::vector<at::Tensor> expected;
      for (const ShardChunk& chunk : chunks) {
        expected.push_back(chunk.local.clone());
      }
      saver.start(step, chunks, "{}", staging);
      if (staging == Staging::kCopy) {
        for (const ShardChunk& chunk : chunks) {
          chunk.local.zero_();
        }
      }
      EXPECT_EQ(saver.wait()->error, "");
      std::vector<ShardChunk> loaded = chunks_on_gpu();
      Checkpoint::open(store / step_name(step)).load(loaded);
      for (size_t i = 0; i < loaded.size(); ++i) {
        EXPECT_TRUE(loaded[i].local.is_cuda());
        expect_bitwise_equal(loaded[i].local.cpu().contiguous(), expected[i].cpu().contiguous());
      }
    }
  }
}

}  // namespace
}  // namespace narrowgauge::checkpoint
