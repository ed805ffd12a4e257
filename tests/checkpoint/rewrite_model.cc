// For interop tests: reads a model and writes it as a Hugging Face directory.
//   rewrite_model IN OUT float32|bfloat16|float16 MAX_SHARD_BYTES
// IN is a Hugging Face directory or a llama2.c file (*.bin). Parameters of a directory are read in
// three ranges of rows each, as ranks do. Prints the names of tensors it had no use for.
#include <ATen/ops/cat.h>

#include <cstdio>
#include <exception>
#include <string>

#include "checkpoint/huggingface_directory.h"
#include "checkpoint/llama2c.h"

namespace {

using namespace narrowgauge::checkpoint;

HuggingFaceWriteOptions parse_options(const std::string& dtype, const std::string& max_bytes) {
  HuggingFaceWriteOptions options;
  options.dtype = dtype == "float32" ? at::kFloat : dtype == "float16" ? at::kHalf : at::kBFloat16;
  options.max_shard_bytes = std::stoll(max_bytes);
  return options;
}

void rewrite_directory(const std::string& in, const std::string& out,
                       const HuggingFaceWriteOptions& options) {
  const HuggingFaceDirectory directory = HuggingFaceDirectory::open(in);
  for (const std::string& name : directory.validate()) {
    std::printf("unused %s\n", name.c_str());
  }
  std::map<std::string, int64_t> num_rows;
  for (const ParameterSpec& spec : parameter_specs(directory.config().transformer)) {
    num_rows[spec.name] = spec.sizes[0];
  }
  const auto full_parameter = [&](const std::string& name) {
    const int64_t rows = num_rows.at(name);
    return at::cat({directory.rows(name, 0, rows / 3), directory.rows(name, rows / 3, rows - 1),
                    directory.rows(name, rows - 1, rows)});
  };
  write_huggingface_directory(out, directory.config(), full_parameter, options);
}

void rewrite_llama2c(const std::string& in, const std::string& out,
                     const HuggingFaceWriteOptions& options) {
  const Llama2cModel model = read_llama2c(in);
  HuggingFaceConfig config;
  config.transformer = model.config;
  config.bos_token_id = 1;
  config.eos_token_ids = {2};
  write_huggingface_directory(
      out, config, [&](const std::string& name) { return model.parameters.at(name); }, options);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: rewrite_model IN OUT DTYPE MAX_SHARD_BYTES\n");
    return 2;
  }
  try {
    const std::string in = argv[1];
    const HuggingFaceWriteOptions options = parse_options(argv[3], argv[4]);
    const bool is_llama2c = in.size() > 4 && in.substr(in.size() - 4) == ".bin";
    (is_llama2c ? rewrite_llama2c : rewrite_directory)(in, argv[2], options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
