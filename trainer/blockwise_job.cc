#include "trainer/blockwise_job.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "checkpoint/durable_file.h"
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

// Embedded windows in batches.
std::vector<at::Tensor> embed(const BlockwiseJob& job) {
  std::vector<at::Tensor> batches;
  if (job.windows.empty()) {
    return batches;
  }
  const at::Tensor table =
      job.source.parameter("embed_tokens.weight", conversion_dtype(job.source));
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
  const at::ScalarType dtype = conversion_dtype(source);
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

// Throws std::runtime_error unless what stands in OUTPUT.partial has this fingerprint.
void check_partial_output(const fs::path& output, const std::string& fingerprint) {
  const fs::path partial = partial_of(output);
  if (fs::exists(partial) && (!fs::exists(partial / kFingerprintFile) ||
                              checkpoint::read_file(partial / kFingerprintFile) != fingerprint)) {
    throw std::runtime_error("expected " + partial.string() +
                             " to be of the same job, got another one's; finish that one or "
                             "delete the folder");
  }
}

}  // namespace

at::ScalarType conversion_dtype(const checkpoint::HuggingFaceDirectory& source) {
  return source.config().dtype == "bfloat16" ? at::kBFloat16 : at::kFloat;
}

QuantizedModel outer_parameters(const checkpoint::HuggingFaceDirectory& source) {
  const at::ScalarType dtype = conversion_dtype(source);
  QuantizedModel outer;
  outer.plain["model.embed_tokens.weight"] = source.parameter("embed_tokens.weight", dtype);
  outer.plain["model.norm.weight"] = source.parameter("norm.weight", dtype);
  if (!source.config().transformer.tie_word_embeddings) {
    outer.plain["lm_head.weight"] = source.parameter("lm_head.weight", dtype);
  }
  return outer;
}

void run_blockwise_job(const BlockwiseJob& job, QuantizedModel outer) {
  const at::NoGradGuard no_grad;
  check_partial_output(job.output, job.fingerprint);
  const nn::TransformerConfig& config = job.source.config().transformer;
  fs::create_directories(partial_of(job.output));
  checkpoint::write_durable_file(partial_of(job.output) / kFingerprintFile, job.fingerprint);

  quantization::CalibrationState state;
  state.activations = embed(job);
  if (!job.windows.empty()) {
    state.context.rotary =
        nn::make_rotary_table(config, static_cast<int64_t>(job.windows.front().size()));
  }
  QuantizedModel model = std::move(outer);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    job.progress(job.stage, static_cast<double>(layer) / static_cast<double>(config.num_layers));
    const fs::path folder = block_folder(job.output, layer);
    const auto block = load_block(job.source, layer);
    if (!fs::exists(folder / quantization::kQuantizedModelFile)) {
      quantization::write_quantized_model(folder, job.convert_block(*block, layer, state));
    }
    const QuantizedModel part = quantization::read_quantized_model(folder);
    if (!state.activations.empty()) {
      quantization::apply_to_block(*block, config, layer, part);
      quantization::advance(*block, state);
    }
    merge(part, model);
  }
  job.progress(job.stage, 1.0);
  job.write_output(partial_of(job.output) / "model", model);
  fs::remove_all(partial_of(job.output));
}

}  // namespace narrowgauge::trainer
