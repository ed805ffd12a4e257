// How fast a checkpoint is saved beside what the disk can do, and how long a step waits for it.
//
//   checkpoint_save FOLDER [MEGABYTES [ROUNDS]]
//
// In turn, ROUNDS times: the same bytes written to one file through the page cache and synced, and
// past it (O_DIRECT), which is the most the disk can do; a save that is waited for; a save beside
// training, of which start() is what a step waits for; a copy of the bytes in memory. Prints
// medians and ratios, each save beside the faster plain write of its round.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <c10/util/Exception.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/checkpoint_saver.h"
#include "comm/self_communicator.h"

namespace narrowgauge {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kRowBytes = 1 << 14;
constexpr int kTensors = 16;

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// One file, sequentially, in pieces of 4 MiB, and fsync: what a program does that does nothing
// else. With O_DIRECT in `flags` the data lies on pages of its own.
void write_plainly(const fs::path& path, const std::vector<checkpoint::ShardChunk>& chunks,
                   int flags) {
  const int descriptor =
      ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | flags, 0644);
  for (const checkpoint::ShardChunk& chunk : chunks) {
    const auto* data = static_cast<const char*>(chunk.local.const_data_ptr());
    for (size_t done = 0; done < chunk.local.nbytes();) {
      const ssize_t count =
          ::write(descriptor, data + done, std::min<size_t>(chunk.local.nbytes() - done, 4 << 20));
      TORCH_CHECK(count > 0, "cannot write ", path.string());
      done += static_cast<size_t>(count);
    }
  }
  TORCH_CHECK(::fsync(descriptor) == 0, "cannot fsync ", path.string());
  ::close(descriptor);
}

int run(const fs::path& folder, int64_t megabytes, int rounds) {
  const int64_t rows = megabytes * 1'000'000 / kRowBytes / kTensors;
  std::vector<checkpoint::ShardChunk> chunks;
  for (int i = 0; i < kTensors; ++i) {
    const std::vector<int64_t> sizes = {rows, kRowBytes / 4};
    chunks.push_back({"tensor" + std::to_string(i), at::full(sizes, i + 0.5), sizes, 0});
  }
  const double bytes = static_cast<double>(kTensors * rows * kRowBytes);
  comm::SelfCommunicator self;
  checkpoint::CheckpointSaver saver(folder / "store", /*keep_latest_k=*/1, self);
  checkpoint::CheckpointSaver beside_saver(folder / "store", /*keep_latest_k=*/1, self);
  // As large, on pages of 4 KiB: what O_DIRECT asks for.
  std::vector<std::unique_ptr<void, void (*)(void*)>> pages;
  std::vector<checkpoint::ShardChunk> aligned = chunks;
  for (checkpoint::ShardChunk& chunk : aligned) {
    pages.emplace_back(std::aligned_alloc(4096, chunk.local.nbytes()), &std::free);
    chunk.local = at::from_blob(pages.back().get(), chunk.local.sizes()).copy_(chunk.local);
  }
  std::vector<at::Tensor> copies;
  for (const checkpoint::ShardChunk& chunk : chunks) {
    copies.push_back(at::empty_like(chunk.local));
  }
  std::vector<double> plain, direct, waited, beside, delay, copy;
  int64_t step = 0;
  for (int round = 0; round < rounds; ++round) {
    plain.push_back(seconds_of([&] { write_plainly(folder / "plain", chunks, 0); }));
    fs::remove(folder / "plain");
    direct.push_back(seconds_of([&] { write_plainly(folder / "plain", aligned, O_DIRECT); }));
    fs::remove(folder / "plain");
    using Staging = checkpoint::CheckpointSaver::Staging;
    waited.push_back(seconds_of([&] {
      saver.start(++step, chunks, "{}", Staging::kInPlace);
      TORCH_CHECK(saver.wait()->error.empty(), "the save failed");
    }));
    beside_saver.start(++step, chunks, "{}", Staging::kCopy);
    const auto outcome = beside_saver.wait();
    TORCH_CHECK(outcome->error.empty(), "the save failed: ", outcome->error);
    beside.push_back(outcome->seconds);
    delay.push_back(outcome->staging_seconds);
    copy.push_back(seconds_of([&] {
      for (size_t i = 0; i < chunks.size(); ++i) {
        copies[i].copy_(chunks[i].local);
      }
    }));
  }
  const auto line = [&](const char* what, const std::vector<double>& seconds) {
    std::printf("%-28s %8.3f s  %7.3f GB/s\n", what, median(seconds),
                bytes / median(seconds) / 1e9);
  };
  std::printf("%.0f MB, medians of %d rounds\n", bytes / 1e6, rounds);
  line("plain sequential write", plain);
  line("the same past the cache", direct);
  line("save, waited for", waited);
  line("save beside training", beside);
  line("  of which the step waits", delay);
  line("copy in memory", copy);
  std::vector<double> share;
  for (size_t i = 0; i < plain.size(); ++i) {
    share.push_back(std::min(plain[i], direct[i]) / waited[i]);
  }
  std::printf("speed of a save beside the faster plain write of its round: %.2f\n", median(share));
  return 0;
}

}  // namespace
}  // namespace narrowgauge

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: checkpoint_save FOLDER [MEGABYTES [ROUNDS]]\n");
    return 2;
  }
  return narrowgauge::run(argv[1], argc > 2 ? std::atoll(argv[2]) : 1000,
                          argc > 3 ? std::atoi(argv[3]) : 5);
}
