// Linked into every test that runs on a GPU: loads libtorch's CUDA half first, and fails where
// there is no GPU. Memory that at::empty returns is filled with NaN, so that an element that a
// kernel leaves out is seen.

#include <ATen/Context.h>
#include <gtest/gtest.h>

#include "cuda/libtorch_cuda.h"

namespace {

class GpuEnvironment : public ::testing::Environment {
 public:
  void SetUp() override {
    const std::string problem = narrowgauge::cuda::load_libtorch_cuda();
    ASSERT_TRUE(problem.empty()) << problem;
    at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/true);
    at::globalContext().setDeterministicFillUninitializedMemory(true);
  }
};

// gtest deletes it.
[[maybe_unused]] const auto* const environment =
    ::testing::AddGlobalTestEnvironment(new GpuEnvironment);

}  // namespace
