#pragma once

#include <ATen/ops/empty_like.h>
#include <ATen/ops/randn.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "cuda/launch_scope.h"

namespace narrowgauge {

// Times kernels on a GPU, by events, and prints one line each; see kernels_gpu_benchmark.cc.
class Benchmark {
 public:
  static constexpr int kWarmup = 3;
  static constexpr int kRepeats = 10;
  static constexpr int kCalls = 10;
  static constexpr double kGiga = 1e9;

  explicit Benchmark(std::string filter) : filter_(std::move(filter)) {
    const at::Tensor from = random({1 << 29}, at::kBFloat16);
    const at::Tensor to = at::empty_like(from);
    const double seconds = measure([&] { to.copy_(from); });
    copy_bandwidth_ = 2.0 * static_cast<double>(from.nbytes()) / seconds;
    std::printf("%-44s %9.1f us %8.0f GB/s\n", "copy of 1 GiB", 1e6 * seconds,
                copy_bandwidth_ / kGiga);
  }

  static at::Tensor random(at::IntArrayRef sizes, at::ScalarType dtype) {
    return at::randn(sizes, at::TensorOptions(at::kCUDA).dtype(dtype));
  }

  // bytes: what must be read and written once.
  void run(const std::string& name, double bytes, const std::function<void()>& kernel) const {
    if (name.find(filter_) == std::string::npos) {
      return;
    }
    const double seconds = measure(kernel);
    std::printf("%-44s %9.1f us %8.0f GB/s %5.1f %%\n", name.c_str(), 1e6 * seconds,
                bytes / seconds / kGiga, 100.0 * bytes / seconds / copy_bandwidth_);
    std::fflush(stdout);
  }

  void run_flops(const std::string& name, double flops, const std::function<void()>& kernel) const {
    if (name.find(filter_) == std::string::npos) {
      return;
    }
    const double seconds = measure(kernel);
    std::printf("%-44s %9.1f us %8.1f TFLOP/s\n", name.c_str(), 1e6 * seconds,
                flops / seconds / 1e12);
    std::fflush(stdout);
  }

 private:
  static double measure(const std::function<void()>& kernel) {
    const cuda::LaunchScope scope(random({1}, at::kFloat));
    cudaEvent_t begin{};
    cudaEvent_t end{};
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    std::vector<double> seconds;
    for (int i = 0; i < kWarmup + kRepeats; ++i) {
      cudaEventRecord(begin, scope.stream());
      for (int call = 0; call < kCalls; ++call) {
        kernel();
      }
      cudaEventRecord(end, scope.stream());
      const cudaError_t error = cudaEventSynchronize(end);
      TORCH_CHECK(error == cudaSuccess, cudaGetErrorString(error));
      float milliseconds = 0;
      cudaEventElapsedTime(&milliseconds, begin, end);
      if (i >= kWarmup) {
        seconds.push_back(milliseconds / 1e3 / kCalls);
      }
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    std::sort(seconds.begin(), seconds.end());
    return seconds[seconds.size() / 2];
  }

  std::string filter_;
  double copy_bandwidth_ = 0;
};

}  // namespace narrowgauge
