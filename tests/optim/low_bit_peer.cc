// Runs LowBitAdam over raw files, for low_bit_torchao_test.py:
//   low_bit_peer DIR FORMAT DTYPE DECOUPLED STEPS LR BETA1 BETA2 EPS WEIGHT_DECAY ROWSxCOLUMNS...
// FORMAT: float32 bfloat16 8bit 4bit fp8. DTYPE: float32 or bfloat16, of parameters and gradients.
// DIR holds p<i>.bin and g<i>_<step>.bin (step from 1); writes out_p<i>.bin and out_<state>.bin.
#include <ATen/ops/empty.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>

#include "optim/low_bit_adam.h"

namespace narrowgauge::optim {
namespace {

namespace fs = std::filesystem;

at::Tensor read(const fs::path& path, const std::vector<int64_t>& sizes, at::ScalarType dtype) {
  at::Tensor tensor = at::empty(sizes, dtype);
  std::ifstream file(path, std::ios::binary);
  if (!file.read(static_cast<char*>(tensor.mutable_data_ptr()),
                 static_cast<std::streamsize>(tensor.nbytes()))) {
    throw std::runtime_error("expected " + std::to_string(tensor.nbytes()) + " bytes in " +
                             path.string());
  }
  return tensor;
}

void write(const fs::path& path, const at::Tensor& tensor) {
  std::ofstream file(path, std::ios::binary);
  file.write(static_cast<const char*>(tensor.const_data_ptr()),
             static_cast<std::streamsize>(tensor.nbytes()));
  if (!file.flush()) {
    throw std::runtime_error("can not write " + path.string());
  }
}

void run(int argc, char** argv) {
  const std::map<std::string, StateFormat> formats = {{"float32", StateFormat::kFloat32},
                                                      {"bfloat16", StateFormat::kBFloat16},
                                                      {"8bit", StateFormat::k8bit},
                                                      {"4bit", StateFormat::k4bit},
                                                      {"fp8", StateFormat::kFp8}};
  const fs::path dir = argv[1];
  const at::ScalarType dtype = std::string(argv[3]) == "bfloat16" ? at::kBFloat16 : at::kFloat;
  LowBitAdamOptions options;
  options.state_format = formats.at(argv[2]);
  options.adam = {std::atof(argv[7]), std::atof(argv[8]), std::atof(argv[9]),
                  std::string(argv[4]) == "1"};
  ParameterGroup group;
  group.weight_decay = std::atof(argv[10]);
  for (int i = 11; i < argc; ++i) {
    const std::string sizes = argv[i];
    const size_t x = sizes.find('x');
    const std::string name = std::to_string(i - 11);
    group.names.push_back(name);
    group.params.push_back(read(dir / ("p" + name + ".bin"),
                                {std::stoll(sizes.substr(0, x)), std::stoll(sizes.substr(x + 1))},
                                dtype));
  }
  const std::vector<at::Tensor> params = group.params;
  LowBitAdam optimizer({group}, options, nullptr);
  for (int step = 1; step <= std::atoi(argv[5]); ++step) {
    for (size_t i = 0; i < params.size(); ++i) {
      const std::string name = "g" + std::to_string(i) + "_" + std::to_string(step) + ".bin";
      params[i].mutable_grad() = read(dir / name, params[i].sizes().vec(), dtype);
    }
    optimizer.step(std::atof(argv[6]));
  }
  for (size_t i = 0; i < params.size(); ++i) {
    write(dir / ("out_p" + std::to_string(i) + ".bin"), params[i]);
  }
  for (const StateTensor& state : optimizer.state()) {
    write(dir / ("out_" + state.name + ".bin"), state.local);
  }
}

}  // namespace
}  // namespace narrowgauge::optim

int main(int argc, char** argv) {
  if (argc < 12) {
    std::cerr << "expected 11 arguments or more, got " << argc - 1 << "\n";
    return 2;
  }
  narrowgauge::optim::run(argc, argv);
  return 0;
}
