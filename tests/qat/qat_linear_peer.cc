// Output and gradients of a FakeQuantizedLinear, for qat_linear_torchao_test.py:
//   qat_linear_peer DIR
// DIR/cases.txt has a case a line: NAME DTYPE TOKENS IN OUT GROUP EPS SCHEME; DIR/NAME.x, .weight,
// .bias and .grad hold raw tensors. GROUP 0 and EPS 0 stand for the scheme's own. Writes NAME.y,
// NAME.grad_x, NAME.grad_weight and NAME.grad_bias.
#include <ATen/ops/empty.h>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>

#include "qat/fake_quantized_linear.h"
#include "quantization/spec_json.h"

namespace narrowgauge::qat {
namespace {

namespace fs = std::filesystem;

void write(const std::string& path, const at::Tensor& tensor) {
  const at::Tensor bytes = tensor.contiguous();
  std::ofstream file(path, std::ios::binary);
  file.write(static_cast<const char*>(bytes.const_data_ptr()),
             static_cast<std::streamsize>(bytes.nbytes()));
  TORCH_CHECK(file.flush(), "can not write ", path);
}

at::Tensor read(const std::string& path, at::IntArrayRef sizes, at::ScalarType dtype) {
  const at::Tensor tensor = at::empty(sizes, dtype);
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK(file.read(static_cast<char*>(tensor.mutable_data_ptr()),
                        static_cast<std::streamsize>(tensor.nbytes())),
              "expected ", tensor.nbytes(), " bytes in ", path);
  return tensor;
}

void run_case(const fs::path& dir, const std::string& line) {
  std::istringstream words(line);
  std::string name, dtype_word, scheme;
  int64_t tokens = 0, in = 0, out = 0, group = 0;
  double eps = 0;
  words >> name >> dtype_word >> tokens >> in >> out >> group >> eps >> scheme;
  TORCH_CHECK(words, "expected 8 words, got: ", line);
  const at::ScalarType dtype = quantization::dtype_by_name(dtype_word, line);
  quantization::SchemeOptions options;
  if (group != 0) {
    options.group_size = group;
  }
  if (eps != 0) {
    options.eps = eps;
  }
  const std::string stem = (dir / name).string();
  nn::Linear linear({in, out, true}, at::TensorOptions().dtype(dtype));
  linear.replace_parameter("weight", read(stem + ".weight", {out, in}, dtype));
  linear.replace_parameter("bias", read(stem + ".bias", {out}, dtype));
  linear.weight.set_requires_grad(true);
  linear.bias.set_requires_grad(true);
  FakeQuantizedLinear prepared(linear, quantization::scheme_by_name(scheme, options));
  const at::Tensor x = read(stem + ".x", {tokens, in}, dtype).requires_grad_(true);
  const at::Tensor y = prepared(x);
  y.backward(read(stem + ".grad", {tokens, out}, dtype));
  write(stem + ".y", y);
  write(stem + ".grad_x", x.grad());
  write(stem + ".grad_weight", linear.weight.grad());
  write(stem + ".grad_bias", linear.bias.grad());
}

void run(const fs::path& dir) {
  std::ifstream cases(dir / "cases.txt");
  for (std::string line; std::getline(cases, line);) {
    run_case(dir, line);
  }
}

}  // namespace
}  // namespace narrowgauge::qat

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: qat_linear_peer DIR\n";
    return 2;
  }
  narrowgauge::qat::run(argv[1]);
  return 0;
}
