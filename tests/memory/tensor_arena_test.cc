#include "memory/tensor_arena.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <c10/core/CPUAllocator.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <thread>
#include <utility>
#include <vector>

namespace narrowgauge::memory {
namespace {

constexpr size_t kCapacity = size_t{1} << 30;
constexpr size_t kLarge = TensorArena::kSmallestBytes;

// Counts what the arena does not serve.
class CountingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    ++count;
    return c10::GetDefaultCPUAllocator()->allocate(size);
  }
  void copy_data(void* target, const void* source, size_t size) const override {
    default_copy_data(target, source, size);
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return c10::GetDefaultCPUAllocator()->raw_deleter();
  }
  int count = 0;
};

struct TensorArenaTest : ::testing::Test {
  CountingAllocator fallback;
  TensorArena arena{kCapacity, fallback};
};

TEST_F(TensorArenaTest, LargeBlocksAreAlignedAndUsedAgain) {
  ASSERT_EQ(arena.capacity(), kCapacity);
  c10::DataPtr first = arena.allocate(kLarge + 1);
  c10::DataPtr second = arena.allocate(3 * kLarge);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first.get()) % 64, 0U);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(second.get()) % 64, 0U);
  const void* place = first.get();
  first.clear();
  const c10::DataPtr again = arena.allocate(kLarge);
  EXPECT_EQ(again.get(), place);
  EXPECT_EQ(fallback.count, 0);
}

TEST_F(TensorArenaTest, SmallBlocksAndThoseThatDoNotFitAreTheFallbacks) {
  EXPECT_NE(arena.allocate(kLarge - 1).get(), nullptr);
  EXPECT_EQ(arena.allocate(0).get(), nullptr);
  EXPECT_EQ(fallback.count, 1);
  const c10::DataPtr most = arena.allocate(kCapacity - 64);
  EXPECT_EQ(fallback.count, 1);
  const c10::DataPtr other = arena.allocate(kLarge);
  EXPECT_EQ(fallback.count, 2);
  std::memset(other.get(), 1, kLarge);
  EXPECT_NE(arena.allocate(kCapacity + 1).get(), nullptr);
  EXPECT_EQ(fallback.count, 3);
  EXPECT_THROW(arena.allocate(~size_t{0} - 10), c10::Error);
}

// oneDNN takes its scratch memory so.
TEST_F(TensorArenaTest, RawBlocks) {
  for (const size_t size : {size_t{0}, size_t{1}, kLarge - 1, kLarge, 2 * kLarge, kCapacity}) {
    void* block = arena.raw_allocate(size);
    EXPECT_EQ(block == nullptr, size == 0);
    if (size > 0) {
      static_cast<char*>(block)[size - 1] = 1;
    }
    arena.raw_deallocate(block);
  }
  EXPECT_EQ(fallback.count, 3);
  EXPECT_NE(arena.allocate(kCapacity - 64).get(), nullptr);
  EXPECT_EQ(fallback.count, 3);
}

TEST(TensorArena, AnArenaThatTheSystemRefusesIsEmpty) {
  CountingAllocator fallback;
  TensorArena arena(0, fallback);
  EXPECT_EQ(arena.capacity(), 0U);
  EXPECT_NE(arena.allocate(kLarge).get(), nullptr);
  EXPECT_EQ(fallback.count, 1);
  EXPECT_LT(TensorArena(~size_t{0} / 2, fallback).capacity(), ~size_t{0} / 2);
}

TEST_F(TensorArenaTest, BlocksOfSeveralThreadsDoNotOverlap) {
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([this, thread] {
      std::mt19937 random(static_cast<unsigned>(thread));
      std::vector<std::pair<c10::DataPtr, size_t>> blocks;
      for (int step = 0; step < 400; ++step) {
        if (blocks.size() > 20) {
          std::swap(blocks[random() % blocks.size()], blocks.back());
          const auto& [block, size] = blocks.back();
          const auto* bytes = static_cast<const unsigned char*>(block.get());
          for (size_t i = 0; i < size; ++i) {
            ASSERT_EQ(bytes[i], static_cast<unsigned char>(size + static_cast<size_t>(thread)));
          }
          blocks.pop_back();
        }
        const size_t size = kLarge + random() % kLarge;
        blocks.emplace_back(arena.allocate(size), size);
        std::memset(blocks.back().first.get(),
                    static_cast<int>((size + static_cast<size_t>(thread)) & 255), size);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(fallback.count, 0);
  EXPECT_NE(arena.allocate(kCapacity - 64).get(), nullptr);  // everything is free again
  EXPECT_EQ(fallback.count, 0);
}

// What one thread fills the next one checks and frees, as gradients that backward's threads take.
TEST_F(TensorArenaTest, BlocksAreFreedByOtherThreads) {
  constexpr int kBlocks = 40;
  for (int round = 0; round < 10; ++round) {
    std::vector<std::pair<c10::DataPtr, size_t>> blocks;
    std::thread([&] {
      for (int i = 0; i < kBlocks; ++i) {
        const size_t size = kLarge + static_cast<size_t>(i) * 4099 + static_cast<size_t>(round);
        blocks.emplace_back(arena.allocate(size), size);
        std::memset(blocks.back().first.get(), i, size);
      }
    }).join();
    std::vector<std::thread> threads;
    for (int thread = 0; thread < 2; ++thread) {
      threads.emplace_back([&, thread] {
        for (int i = thread; i < kBlocks; i += 2) {
          auto& [block, size] = blocks[static_cast<size_t>(i)];
          const auto* bytes = static_cast<const unsigned char*>(block.get());
          ASSERT_EQ(std::count(bytes, bytes + size, static_cast<unsigned char>(i)),
                    static_cast<std::ptrdiff_t>(size));
          block.clear();
        }
      });
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
  }
  EXPECT_NE(arena.allocate(kCapacity - 64).get(), nullptr);
  EXPECT_EQ(fallback.count, 0);
}

// Every block keeps its bytes, whether the arena's or, where that is full, the fallback's.
TEST(TensorArena, AFullArenaOverflowsIntoTheFallback) {
  constexpr size_t kSmall = size_t{64} << 20;
  CountingAllocator fallback;
  TensorArena arena(kSmall, fallback);
  for (int round = 0; round < 2; ++round) {
    fallback.count = 0;
    std::vector<c10::DataPtr> blocks;
    constexpr size_t kSize = (size_t{3} << 20) + 1;
    for (int i = 0; i < 30; ++i) {
      blocks.push_back(arena.allocate(kSize));
      std::memset(blocks.back().get(), i, kSize);
    }
    EXPECT_EQ(fallback.count, 30 - 21);  // 64 MiB hold 21 of 3 MiB and a little
    for (int i = 0; i < 30; ++i) {
      const auto* bytes = static_cast<const unsigned char*>(blocks[static_cast<size_t>(i)].get());
      EXPECT_EQ(std::count(bytes, bytes + kSize, static_cast<unsigned char>(i)),
                static_cast<std::ptrdiff_t>(kSize));
    }
  }
}

TEST_F(TensorArenaTest, EverySizeIsAlignedAndWhole) {
  std::vector<std::pair<c10::DataPtr, size_t>> blocks;
  for (size_t size = kLarge - 66; size < kLarge + 200; ++size) {
    blocks.emplace_back(arena.allocate(size), size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(blocks.back().first.get()) % 64, 0U) << size;
    std::memset(blocks.back().first.get(), static_cast<int>(size & 255), size);
  }
  for (const auto& [block, size] : blocks) {
    const auto* bytes = static_cast<const unsigned char*>(block.get());
    EXPECT_EQ(std::count(bytes, bytes + size, static_cast<unsigned char>(size)),
              static_cast<std::ptrdiff_t>(size));
  }
}

TEST_F(TensorArenaTest, ServesTensors) {
  c10::Allocator* before = c10::GetCPUAllocator();
  c10::SetCPUAllocator(&arena);
  {
    const at::Tensor numbers = at::arange(100'000, at::kLong);
    const at::Tensor copy = numbers.clone().resize_({200'000}).fill_(3);
    EXPECT_EQ(numbers.sum().item<int64_t>(), int64_t{99'999} * 50'000);
    EXPECT_EQ(copy.sum().item<int64_t>(), 600'000);
    const at::Tensor ones = at::ones({512, 640}, at::kBFloat16);
    EXPECT_TRUE(at::mm(ones, ones.t()).eq(640).all().item<bool>());
  }
  c10::SetCPUAllocator(before);
  EXPECT_GT(fallback.count, 0);  // the sums
  fallback.count = 0;
  EXPECT_NE(arena.allocate(kCapacity - 64).get(), nullptr);
  EXPECT_EQ(fallback.count, 0);
}

}  // namespace
}  // namespace narrowgauge::memory
