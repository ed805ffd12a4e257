#include "trainer/quantize_model.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <stdexcept>

#include "checkpoint/durable_file.h"
#include "checkpoint/huggingface_config.h"
#include "checkpoint/huggingface_names.h"
#include "nn/rotary_embedding.h"
#include "quantization/quantized_model.h"

namespace narrowgauge::trainer {
namespace {

namespace fs = std::filesystem;
using quantization::QuantizedModel;

constexpr int64_t kTokensPerBatch = 2048;
constexpr const char* kFingerprintFile = "job.txt";

fs::path partial_of(const fs::path& output) { return output.string() + ".partial"; }

fs::path block_folder(const fs::path& output, int64_t layer) {
  return partial_of(output) / ("block-" + std::to_string(layer));
}

at::ScalarType dtype_of(const checkpoint::HuggingFaceDirectory& source) {
  return source.config().dtype == "bfloat16" ? at::kBFloat16 : at::kFloat;
}

// Embedded windows in batches.
std::vector<at::Tensor> embed(const QuantizeJob& job) {
  std::vector<at::Tensor> batches;
  if (job.windows.empty()) {
    return batches;
  }
  const at::Tensor table = job.source.parameter("embed_tokens.weight", dtype_of(job.source));
  const auto length = static_cast<int64_t>(job.windows.front().size());
  const auto rows = static_cast<size_t>(std::max<int64_t>(1, kTokensPerBatch / length));
  for (size_t begin = 0; begin < job.windows.size(); begin += rows) {
    const size_t count = std::min(rows, job.windows.size() - begin);
    const at::Tensor tokens = at::empty({static_cast<int64_t>(count), length}, at::kLong);
    for (size_t row = 0; row < count; ++row) {
      std::ranges::copy(job.windows[begin + row],
                        tokens[static_cast<int64_t>(row)].data_ptr<int64_t>());
    }
    batches.push_back(at::embedding(table, tokens));
  }
  return batches;
}

// Block `layer` with its weights; they may be written to, the file stays as it is.
std::shared_ptr<nn::TransformerBlock> load_block(const checkpoint::HuggingFaceDirectory& source,
                                                 int64_t layer) {
  const at::ScalarType dtype = dtype_of(source);
  auto block = std::make_shared<nn::TransformerBlock>(
      source.config().transformer, layer, at::TensorOptions().device(at::kMeta).dtype(dtype));
  const std::string prefix = "layers." + std::to_string(layer) + ".";
  for (const auto& parameter : block->named_parameters()) {
    block->replace_parameter(parameter.key(),
                             source.parameter(prefix + parameter.key(), dtype).clone());
  }
  return block;
}

void merge(const QuantizedModel& part, QuantizedModel& into) {
  into.weights.insert(part.weights.begin(), part.weights.end());
  into.plain.insert(part.plain.begin(), part.plain.end());
}

// What stands before and behind the blocks.
QuantizedModel outer_parameters(const QuantizeJob& job) {
  QuantizedModel outer;
  const auto& config = job.source.config().transformer;
  const at::ScalarType dtype = dtype_of(job.source);
  outer.plain["model.embed_tokens.weight"] = job.source.parameter("embed_tokens.weight", dtype);
  outer.plain["model.norm.weight"] = job.source.parameter("norm.weight", dtype);
  if (config.tie_word_embeddings) {
    return outer;
  }
  const at::Tensor head = job.source.parameter("lm_head.weight", dtype);
  if (job.include_head) {
    quantization::quantize_linear(config, "lm_head", head, nullptr, job.options, outer);
  } else {
    outer.plain["lm_head.weight"] = head;
  }
  return outer;
}

void write_output(const QuantizeJob& job, const QuantizedModel& model) {
  const fs::path folder = partial_of(job.output) / "model";
  fs::create_directories(folder);
  checkpoint::write_durable_file(folder / "config.json",
                                 checkpoint::huggingface_config_json(job.source.config()));
  checkpoint::write_durable_file(
      folder / "generation_config.json",
      checkpoint::huggingface_generation_config_json(job.source.config()));
  if (job.tokenizer != nullptr) {
    for (const data::TokenizerFile& file : job.tokenizer->exported_files()) {
      fs::copy_file(file.path, folder / file.exported_name, fs::copy_options::overwrite_existing);
    }
  }
  quantization::write_quantized_model(folder, model);
  checkpoint::replace_directory(folder, job.output);
}

}  // namespace

void check_quantize_output(const fs::path& output, const std::string& fingerprint) {
  if (fs::exists(output) && !(fs::is_directory(output) && fs::is_empty(output)) &&
      !fs::exists(output / quantization::kQuantizedModelFile)) {
    throw std::runtime_error("expected " + output.string() +
                             " to be absent, empty or an earlier quantized model; name another "
                             "--output");
  }
  const fs::path partial = partial_of(output);
  if (fs::exists(partial) && (!fs::exists(partial / kFingerprintFile) ||
                              checkpoint::read_file(partial / kFingerprintFile) != fingerprint)) {
    throw std::runtime_error("expected " + partial.string() +
                             " to be of the same job, got another one's; finish that one or "
                             "delete the folder");
  }
}

void quantize_model(const QuantizeJob& job) {
  const at::NoGradGuard no_grad;
  check_quantize_output(job.output, job.fingerprint);
  const nn::TransformerConfig& config = job.source.config().transformer;
  fs::create_directories(partial_of(job.output));
  checkpoint::write_durable_file(partial_of(job.output) / kFingerprintFile, job.fingerprint);

  quantization::CalibrationState state;
  state.activations = embed(job);
  if (!job.windows.empty()) {
    state.context.rotary =
        nn::make_rotary_table(config, static_cast<int64_t>(job.windows.front().size()));
  }
  QuantizedModel model = outer_parameters(job);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    job.progress("quantizing", static_cast<double>(layer) / static_cast<double>(config.num_layers));
    const fs::path folder = block_folder(job.output, layer);
    const auto block = load_block(job.source, layer);
    if (!fs::exists(folder / quantization::kQuantizedModelFile)) {
      quantization::write_quantized_model(
          folder, quantization::quantize_block(*block, config, layer, state, job.options));
    }
    const QuantizedModel part = quantization::read_quantized_model(folder);
    if (!state.activations.empty()) {
      quantization::apply_to_block(*block, config, layer, part);
      quantization::advance(*block, state);
    }
    merge(part, model);
  }
  job.progress("quantizing", 1.0);
  write_output(job, model);
  fs::remove_all(partial_of(job.output));
}

}  // namespace narrowgauge::trainer
