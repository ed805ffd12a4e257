// Seconds of one optimizer step over the 12.6 M parameters of configs/bench/llama_12m.yaml as a
// list of matrices, for optimizer_step.py:
//   optimizer_step NAME THREADS STEPS
// NAME: AdamW AdamW8bit AdamW4bit AdamWFp8 AdamW-bf16-states AdamW8bit-bf16-SR.
// Prints one JSON object: the seconds of each step and the bytes of state a parameter.
#include <ATen/Parallel.h>
#include <ATen/ops/randn.h>

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "optim/adamw.h"
#include "optim/low_bit_adam.h"

namespace narrowgauge::optim {
namespace {

std::vector<std::vector<int64_t>> shapes() {
  std::vector<std::vector<int64_t>> all = {{4096, 384}, {4096, 384}};
  for (int layer = 0; layer < 6; ++layer) {
    for (const auto& shape : std::vector<std::vector<int64_t>>{{384, 384},
                                                               {128, 384},
                                                               {128, 384},
                                                               {384, 384},
                                                               {1024, 384},
                                                               {1024, 384},
                                                               {384, 1024}}) {
      all.push_back(shape);
    }
  }
  return all;
}

std::unique_ptr<Optimizer> make(const std::string& name, ParameterGroup group) {
  std::vector<ParameterGroup> groups = {std::move(group)};
  if (name == "AdamW") {
    return std::make_unique<AdamW>(std::move(groups), AdamOptions{});
  }
  LowBitAdamOptions options;
  if (name == "AdamW8bit") {
    options.state_format = StateFormat::k8bit;
  } else if (name == "AdamW4bit") {
    options.state_format = StateFormat::k4bit;
  } else if (name == "AdamWFp8") {
    options.state_format = StateFormat::kFp8;
  } else if (name == "AdamW-bf16-states") {
    options.state_format = StateFormat::kBFloat16;
  } else if (name == "AdamW8bit-bf16-SR") {
    options.state_format = StateFormat::k8bit;
    options.bf16_stochastic_round = true;
  } else {
    throw std::invalid_argument("unknown optimizer " + name);
  }
  return std::make_unique<LowBitAdam>(std::move(groups), options, nullptr);
}

void run(const std::string& name, int threads, int steps) {
  at::set_num_threads(threads);
  const at::ScalarType dtype = name.ends_with("SR") ? at::kBFloat16 : at::kFloat;
  ParameterGroup group;
  group.weight_decay = 0.1;
  std::vector<at::Tensor> params;
  int64_t count = 0;
  for (const auto& shape : shapes()) {
    params.push_back(at::randn(shape).to(dtype));
    params.back().mutable_grad() = at::randn(shape).to(dtype);
    group.names.push_back(std::to_string(params.size()));
    group.params.push_back(params.back());
    count += params.back().numel();
  }
  const std::unique_ptr<Optimizer> optimizer = make(name, std::move(group));
  std::cout << "{\"step_seconds\": [";
  for (int step = 0; step < steps; ++step) {
    const auto started = std::chrono::steady_clock::now();
    optimizer->step(1e-3);
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - started;
    std::cout << (step == 0 ? "" : ", ") << passed.count();
  }
  double bytes = 0;
  for (const StateTensor& state : optimizer->state()) {
    bytes += static_cast<double>(state.local.nbytes());
  }
  std::cout << "], \"state_bytes_per_parameter\": " << bytes / static_cast<double>(count)
            << ", \"parameters\": " << count << "}\n";
}

}  // namespace
}  // namespace narrowgauge::optim

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "expected NAME THREADS STEPS, got " << argc - 1 << " arguments\n";
    return 2;
  }
  narrowgauge::optim::run(argv[1], std::atoi(argv[2]), std::atoi(argv[3]));
  return 0;
}
