// Runs AdamW over raw fp32 files, for adamw_torch_test.py:
//   adamw_peer DIR NUM_TENSORS STEPS LR BETA1 BETA2 EPS WEIGHT_DECAY GRADIENT_SCALE DECOUPLED
// DIR holds p<i>.bin and g<i>_<step>.bin (step from 1); writes out_p<i>.bin, out_m<i>.bin and
// out_v<i>.bin.
#include <ATen/ops/empty.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>

#include "optim/adamw.h"

namespace narrowgauge::optim {
namespace {

namespace fs = std::filesystem;

at::Tensor read(const fs::path& path) {
  const auto size = static_cast<int64_t>(fs::file_size(path));
  at::Tensor tensor = at::empty({size / 4}, at::kFloat);
  std::ifstream file(path, std::ios::binary);
  if (!file.read(static_cast<char*>(tensor.mutable_data_ptr()), size) && size > 0) {
    throw std::runtime_error("expected " + std::to_string(size) + " bytes in " + path.string());
  }
  return tensor;
}

void write(const fs::path& path, const at::Tensor& tensor) {
  std::ofstream file(path, std::ios::binary);
  file.write(static_cast<const char*>(tensor.const_data_ptr()), tensor.numel() * 4);
  if (!file.flush()) {
    throw std::runtime_error("can not write " + path.string());
  }
}

void run(const fs::path& dir, int num_tensors, int steps, double lr, const AdamOptions& options,
         double weight_decay, double gradient_scale) {
  ParameterGroup group;
  group.weight_decay = weight_decay;
  for (int i = 0; i < num_tensors; ++i) {
    group.names.push_back(std::to_string(i));
    group.params.push_back(read(dir / ("p" + std::to_string(i) + ".bin")));
  }
  const std::vector<at::Tensor> params = group.params;
  AdamW optimizer({group}, options);
  for (int step = 1; step <= steps; ++step) {
    for (int i = 0; i < num_tensors; ++i) {
      const std::string name = "g" + std::to_string(i) + "_" + std::to_string(step) + ".bin";
      params[static_cast<size_t>(i)].mutable_grad() = read(dir / name);
    }
    optimizer.step(lr, gradient_scale);
    optimizer.zero_grad();
  }
  const auto state = optimizer.state();
  for (size_t i = 0; i < params.size(); ++i) {
    write(dir / ("out_p" + std::to_string(i) + ".bin"), params[i]);
    write(dir / ("out_m" + std::to_string(i) + ".bin"), state[2 * i].local);
    write(dir / ("out_v" + std::to_string(i) + ".bin"), state[2 * i + 1].local);
  }
}

}  // namespace
}  // namespace narrowgauge::optim

int main(int argc, char** argv) {
  if (argc != 11) {
    std::cerr << "expected 10 arguments, got " << argc - 1 << "\n";
    return 2;
  }
  narrowgauge::optim::run(
      argv[1], std::atoi(argv[2]), std::atoi(argv[3]), std::atof(argv[4]),
      {std::atof(argv[5]), std::atof(argv[6]), std::atof(argv[7]), std::string(argv[10]) == "1"},
      std::atof(argv[8]), std::atof(argv[9]));
  return 0;
}
