// Casts raw matrices to fp8, for cast_torchao_test.py:
//   cast_peer DIR
// DIR/cases.txt has a case a line: NAME DTYPE ROWS COLS FLOAT8 GRANULARITY ROUNDING DIM, words as
// in the tables below; DIR/NAME.x holds the matrix. Writes NAME.data (codes), NAME.inverse_scale
// and NAME.both_data, NAME.both_inverse_scale (the same from hp_tensor_to_float8_both_dims).
#include <ATen/ops/empty.h>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <string>

#include "float8/cast.h"

namespace narrowgauge::float8 {
namespace {

namespace fs = std::filesystem;

const std::map<std::string, at::ScalarType> kDtypes = {{"bf16", at::kBFloat16},
                                                       {"fp16", at::kHalf},
                                                       {"fp32", at::kFloat},
                                                       {"e4m3", at::kFloat8_e4m3fn},
                                                       {"e5m2", at::kFloat8_e5m2}};
const std::map<std::string, ScalingGranularity> kGranularities = {
    {"tensorwise", ScalingGranularity::kTensorwise},
    {"axiswise", ScalingGranularity::kAxiswise},
    {"1x128", ScalingGranularity::kBlockwise1x128},
    {"128x128", ScalingGranularity::kBlockwise128x128},
    {"1x32", ScalingGranularity::kBlockwise1x32}};
const std::map<std::string, ScaleRounding> kRoundings = {{"none", ScaleRounding::kNone},
                                                         {"pow2", ScaleRounding::kPowerOf2},
                                                         {"floor", ScaleRounding::kE8m0Floor},
                                                         {"rceil", ScaleRounding::kE8m0Rceil}};

void write(const fs::path& path, const at::Tensor& tensor) {
  const at::Tensor bytes = tensor.contiguous();
  std::ofstream file(path, std::ios::binary);
  file.write(static_cast<const char*>(bytes.const_data_ptr()),
             static_cast<std::streamsize>(bytes.nbytes()));
  TORCH_CHECK(file.flush(), "can not write ", path.string());
}

void write(const fs::path& stem, const std::string& prefix, const Float8TrainingTensor& tensor) {
  write(stem.string() + "." + prefix + "data", tensor.data);
  write(stem.string() + "." + prefix + "inverse_scale", tensor.inverse_scale);
}

void run_case(const fs::path& dir, const std::string& line) {
  std::istringstream words(line);
  std::string name, dtype, float8, granularity, rounding;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t dim = 0;
  words >> name >> dtype >> rows >> cols >> float8 >> granularity >> rounding >> dim;
  TORCH_CHECK(words, "expected 8 words, got: ", line);
  const at::Tensor x = at::empty({rows, cols}, kDtypes.at(dtype));
  std::ifstream file(dir / (name + ".x"), std::ios::binary);
  TORCH_CHECK(
      file.read(static_cast<char*>(x.mutable_data_ptr()), static_cast<std::streamsize>(x.nbytes())),
      "expected ", x.nbytes(), " bytes for ", name);
  const CastSpec spec{kDtypes.at(float8), kGranularities.at(granularity), kRoundings.at(rounding)};
  write(dir / name, "", hp_tensor_to_float8_dynamic(x, spec, dim));
  const BothDims both = hp_tensor_to_float8_both_dims(x, spec, spec);
  write(dir / name, "both_", dim == 0 ? both.dim0 : both.dim1);
}

void run(const fs::path& dir) {
  std::ifstream cases(dir / "cases.txt");
  for (std::string line; std::getline(cases, line);) {
    run_case(dir, line);
  }
}

}  // namespace
}  // namespace narrowgauge::float8

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "expected 1 argument, got " << argc - 1 << "\n";
    return 2;
  }
  narrowgauge::float8::run(argv[1]);
  return 0;
}
