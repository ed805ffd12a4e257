#include "trainer/prune_command.h"

#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/huggingface_directory.h"
#include "export/export_model.h"
#include "sparsity/pruning.h"
#include "trainer/blockwise_job.h"
#include "trainer/calibration_text.h"
#include "trainer/export_run.h"
#include "trainer/load_model.h"
#include "trainer/prune_block.h"
#include "trainer/stage_progress.h"

namespace narrowgauge::trainer {
namespace {

namespace fs = std::filesystem;

PruningMethod method_of(const std::string& name) {
  return name == "wanda"       ? PruningMethod::kWanda
         : name == "sparsegpt" ? PruningMethod::kSparseGpt
                               : PruningMethod::kMagnitude;
}

sparsity::PruningPattern pattern_of(const PruneOptions& options) {
  try {
    return sparsity::parse_pruning_pattern(options.pattern);
  } catch (const c10::Error& error) {
    throw UsageError("--pattern: " + std::string(error.what_without_backtrace()));
  }
}

std::string describe_job(const PruneOptions& options,
                         const std::vector<std::vector<int64_t>>& windows) {
  const nlohmann::ordered_json job = {{"model", fs::absolute(options.model).string()},
                                      {"method", options.method},
                                      {"pattern", options.pattern},
                                      {"windows", windows.size()},
                                      {"calibration", fingerprint(windows)}};
  return job.dump() + "\n";
}

void write_output(const fs::path& output, const checkpoint::HuggingFaceConfig& config,
                  const checkpoint::HuggingFaceWriteOptions& options,
                  const quantization::QuantizedModel& model) {
  std::map<std::string, checkpoint::ParameterSpec> specs;
  for (checkpoint::ParameterSpec& spec : checkpoint::parameter_specs(config.transformer)) {
    specs[spec.name] = spec;
  }
  const auto read = [&](const std::string& name) { return model.plain.at(name); };
  checkpoint::write_huggingface_directory(
      output, config,
      [&](const std::string& name) {
        return exports::fused_parameter(config.transformer, specs.at(name), read);
      },
      options);
}

void print_result(const std::string& output, const nn::TransformerConfig& config,
                  const quantization::QuantizedModel& model) {
  int64_t num_zeros = 0;
  int64_t num_weights = 0;
  for (const std::string& module : exports::linear_modules(config)) {
    if (module != "lm_head") {
      const at::Tensor& weight = model.plain.at(module + ".weight");
      num_zeros += weight.eq(0).sum().item<int64_t>();
      num_weights += weight.numel();
    }
  }
  std::fprintf(
      stderr, "wrote %s: %.2f %% of %ld weights of the blocks' linears are 0\n", output.c_str(),
      100.0 * static_cast<double>(num_zeros) / static_cast<double>(num_weights), num_weights);
}

}  // namespace

int prune_command(const PruneOptions& options) {
  const sparsity::PruningPattern pattern = pattern_of(options);
  const auto source = checkpoint::HuggingFaceDirectory::open(model_directory(options.model));
  source.validate();
  const nn::TransformerConfig& config = source.config().transformer;
  const auto tokenizer = load_model_tokenizer(options.model, options.tokenizer);
  checkpoint::HuggingFaceWriteOptions write;
  write.dtype = conversion_dtype(source);
  write.copied_files = tokenizer_files(tokenizer.get());
  checkpoint::check_replaceable(options.output, write);
  const auto windows = calibration_windows({options.calibration, options.samples, options.seq_len},
                                           tokenizer.get(), config);
  StageProgress progress;
  run_blockwise_job(
      {.source = source,
       .output = options.output,
       .windows = windows,
       .fingerprint = describe_job(options, windows),
       .stage = "pruning",
       .progress = [&](std::string_view stage, double done) { progress.update(stage, done); },
       .convert_block =
           [&](nn::TransformerBlock& block, int64_t layer,
               const quantization::CalibrationState& state) {
             return prune_block(block, config, layer, state, method_of(options.method), pattern);
           },
       .write_output =
           [&](const fs::path& /*scratch*/, const quantization::QuantizedModel& model) {
             write_output(options.output, source.config(), write, model);
             print_result(options.output, config, model);
           }},
      outer_parameters(source));
  return kExitDone;
}

}  // namespace narrowgauge::trainer
