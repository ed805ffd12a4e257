// Runs one Float8Linear forward and backward over raw files, for float8_linear_torchao_test.py:
//   float8_linear_peer DIR RECIPE DTYPE EMULATE TOKENS IN OUT
// DTYPE: bfloat16 | float32; EMULATE: 0 | 1. DIR holds x, w, b and g (.bin, in DTYPE); writes y,
// grad_x, grad_w and grad_b.
#include <ATen/ops/empty.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>

#include "float8/float8_linear.h"

namespace narrowgauge::float8 {
namespace {

namespace fs = std::filesystem;

void read(const fs::path& path, const at::Tensor& tensor) {
  std::ifstream file(path, std::ios::binary);
  if (!file.read(static_cast<char*>(tensor.mutable_data_ptr()),
                 static_cast<std::streamsize>(tensor.nbytes()))) {
    throw std::runtime_error("expected " + std::to_string(tensor.nbytes()) + " bytes in " +
                             path.string());
  }
}

void write(const fs::path& path, const at::Tensor& tensor) {
  const at::Tensor dense = tensor.contiguous();
  std::ofstream file(path, std::ios::binary);
  file.write(static_cast<const char*>(dense.const_data_ptr()),
             static_cast<std::streamsize>(dense.nbytes()));
  if (!file.flush()) {
    throw std::runtime_error("can not write " + path.string());
  }
}

void run(const fs::path& dir, const char* recipe, at::ScalarType dtype, bool emulate,
         int64_t tokens, int64_t in, int64_t out) {
  Float8LinearConfig config = Float8LinearConfig::from_recipe_name(recipe);
  config.emulate = emulate;
  nn::Linear source({in, out, true}, at::TensorOptions(dtype));
  read(dir / "w.bin", source.weight.detach());
  read(dir / "b.bin", source.bias.detach());
  Float8Linear linear(source, config);
  const at::Tensor x = at::empty({tokens, in}, dtype);
  const at::Tensor g = at::empty({tokens, out}, dtype);
  read(dir / "x.bin", x);
  read(dir / "g.bin", g);
  x.set_requires_grad(true);
  const at::Tensor y = linear(x);
  y.backward(g);
  write(dir / "y.bin", y.detach());
  write(dir / "grad_x.bin", x.grad());
  write(dir / "grad_w.bin", linear.weight.grad());
  write(dir / "grad_b.bin", linear.bias.grad());
}

}  // namespace
}  // namespace narrowgauge::float8

int main(int argc, char** argv) {
  if (argc != 8) {
    std::cerr << "expected 7 arguments, got " << argc - 1 << "\n";
    return 2;
  }
  const bool bf16 = std::string(argv[3]) == "bfloat16";
  narrowgauge::float8::run(argv[1], argv[2], bf16 ? at::kBFloat16 : at::kFloat,
                           std::atoi(argv[4]) == 1, std::atoll(argv[5]), std::atoll(argv[6]),
                           std::atoll(argv[7]));
  return 0;
}
