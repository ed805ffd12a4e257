// Quantizes raw matrices, for quantize_torchao_test.py:
//   quantize_peer DIR
// DIR/cases.txt has a case a line: NAME DTYPE ROWS COLS SPEC, SPEC being spec_json's JSON without
// spaces; DIR/NAME.x holds the matrix. Writes NAME.codes, NAME.scale, NAME.zero_point and
// NAME.outer_scale where there are any, and NAME.values (dequantized, in DTYPE).
#include <ATen/ops/empty.h>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>

#include "quantization/quantized_tensor.h"
#include "quantization/spec_json.h"

namespace narrowgauge::quantization {
namespace {

namespace fs = std::filesystem;

void write(const std::string& path, const at::Tensor& tensor) {
  const at::Tensor bytes = tensor.contiguous();
  std::ofstream file(path, std::ios::binary);
  file.write(static_cast<const char*>(bytes.const_data_ptr()),
             static_cast<std::streamsize>(bytes.nbytes()));
  TORCH_CHECK(file.flush(), "can not write ", path);
}

void run_case(const fs::path& dir, const std::string& line) {
  std::istringstream words(line);
  std::string name, dtype, json;
  int64_t rows = 0;
  int64_t cols = 0;
  words >> name >> dtype >> rows >> cols >> json;
  TORCH_CHECK(words, "expected 5 words, got: ", line);
  const at::Tensor x = at::empty({rows, cols}, dtype_by_name(dtype, line));
  std::ifstream file(dir / (name + ".x"), std::ios::binary);
  TORCH_CHECK(
      file.read(static_cast<char*>(x.mutable_data_ptr()), static_cast<std::streamsize>(x.nbytes())),
      "expected ", x.nbytes(), " bytes for ", name);
  const QuantizedTensor q = quantize(x, spec_from_json(nlohmann::json::parse(json), name));
  check_quantized_tensor(q);
  const std::string stem = (dir / name).string();
  write(stem + ".codes", q.codes);
  write(stem + ".scale", q.scale);
  if (q.zero_point) {
    write(stem + ".zero_point", *q.zero_point);
  }
  if (q.outer_scale) {
    write(stem + ".outer_scale", *q.outer_scale);
  }
  write(stem + ".values", dequantize(q, x.scalar_type()));
}

void run(const fs::path& dir) {
  std::ifstream cases(dir / "cases.txt");
  for (std::string line; std::getline(cases, line);) {
    run_case(dir, line);
  }
}

}  // namespace
}  // namespace narrowgauge::quantization

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: quantize_peer DIR\n";
    return 2;
  }
  try {
    narrowgauge::quantization::run(argv[1]);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  return 0;
}
