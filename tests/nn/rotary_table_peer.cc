// Writes make_rotary_table's cos and sin as raw fp32, for rotary_table_transformers_test.py:
//   rotary_table_peer OUT HEAD_DIM MAX_LEN THETA SCALING FACTOR LOW HIGH OLD_LENGTH
#include <cstdlib>
#include <fstream>
#include <iostream>

#include "nn/rotary_embedding.h"

int main(int argc, char** argv) {
  if (argc != 10) {
    std::cerr << "expected 9 arguments, got " << argc - 1 << "\n";
    return 2;
  }
  narrowgauge::nn::TransformerConfig config;
  config.head_dim = std::atoll(argv[2]);
  config.rope_theta = std::atof(argv[4]);
  config.rope_scaling = argv[5];
  config.rope_factor = std::atof(argv[6]);
  config.rope_low_freq_factor = std::atof(argv[7]);
  config.rope_high_freq_factor = std::atof(argv[8]);
  config.rope_original_max_seq_len = std::atoll(argv[9]);
  const auto table = narrowgauge::nn::make_rotary_table(config, std::atoll(argv[3]));
  std::ofstream file(argv[1], std::ios::binary);
  for (const at::Tensor& values : {table.cos, table.sin}) {
    file.write(static_cast<const char*>(values.const_data_ptr()), values.numel() * 4);
  }
  return file.flush() ? 0 : 1;
}
