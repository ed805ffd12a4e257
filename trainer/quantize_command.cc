#include "trainer/quantize_command.h"

#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "checkpoint/durable_file.h"
#include "checkpoint/huggingface_config.h"
#include "checkpoint/huggingface_directory.h"
#include "quantization/autoquant.h"
#include "quantization/scheme.h"
#include "trainer/blockwise_job.h"
#include "trainer/calibration_text.h"
#include "trainer/load_model.h"
#include "trainer/stage_progress.h"

namespace narrowgauge::trainer {
namespace {

namespace fs = std::filesystem;
using quantization::Method;
using quantization::Scheme;
using quantization::SchemeOptions;

Method method_of(const std::string& name) {
  return name == "hqq"           ? Method::kHqq
         : name == "gptq"        ? Method::kGptq
         : name == "awq"         ? Method::kAwq
         : name == "smoothquant" ? Method::kSmoothQuant
                                 : Method::kRoundToNearest;
}

Scheme scheme_of(const QuantizeOptions& options) {
  SchemeOptions scheme;
  scheme.group_size = options.group_size;
  if (options.bits) {
    scheme.bits = static_cast<int>(*options.bits);
  }
  if (options.mapping) {
    scheme.mapping = *options.mapping == "asymmetric" ? quantization::MappingType::kAsymmetric
                                                      : quantization::MappingType::kSymmetric;
  }
  return quantization::scheme_by_name(options.scheme, scheme);
}

// What autoquant tries: weight-only and dynamic schemes with kernels of their own.
std::vector<Scheme> candidate_schemes(const QuantizeOptions& options) {
  std::vector<Scheme> candidates;
  const SchemeOptions grouped{.group_size = options.group_size.value_or(32)};
  for (const char* name :
       {"int4-weight-only", "int8-dynamic-act-int4-weight", "int8-weight-only",
        "int8-dynamic-act-int8-weight", "float8-weight-only", "mxfp4", "mxfp8"}) {
    const bool takes_group = std::string(name).find("int4") != std::string::npos;
    candidates.push_back(
        quantization::scheme_by_name(name, takes_group ? grouped : SchemeOptions{}));
  }
  return candidates;
}

std::string describe_job(const QuantizeOptions& options,
                         const std::vector<std::vector<int64_t>>& windows) {
  const nlohmann::ordered_json job = {{"model", fs::absolute(options.model).string()},
                                      {"scheme", options.scheme},
                                      {"group_size", options.group_size.value_or(0)},
                                      {"bits", options.bits.value_or(0)},
                                      {"mapping", options.mapping.value_or("")},
                                      {"method", options.method},
                                      {"act_order", options.act_order},
                                      {"alpha", options.alpha},
                                      {"min_sqnr_db", options.min_sqnr_db},
                                      {"include_head", options.include_head},
                                      {"windows", windows.size()},
                                      {"calibration", fingerprint(windows)}};
  return job.dump() + "\n";
}

quantization::PostTrainingOptions post_training_options(
    const QuantizeOptions& options, const std::optional<Scheme>& scheme,
    std::optional<quantization::Autoquant>& autoquant) {
  quantization::PostTrainingOptions post_training;
  post_training.method = method_of(options.method);
  post_training.act_order = options.act_order;
  post_training.smooth_alpha = options.alpha;
  post_training.scheme = [&](const std::string& name, const at::Tensor& weight,
                             const quantization::InputStatistics* inputs) {
    return autoquant ? autoquant->choose(name, weight, *inputs) : scheme;
  };
  return post_training;
}

quantization::QuantizedModel quantized_outer_parameters(
    const checkpoint::HuggingFaceDirectory& source, bool include_head,
    const quantization::PostTrainingOptions& options) {
  quantization::QuantizedModel outer = outer_parameters(source);
  const auto head = outer.plain.find("lm_head.weight");
  if (include_head && head != outer.plain.end()) {
    const at::Tensor weight = head->second;
    outer.plain.erase(head);
    quantization::quantize_linear(source.config().transformer, "lm_head", weight, nullptr, options,
                                  outer);
  }
  return outer;
}

void check_output(const fs::path& output) {
  if (fs::exists(output) && !(fs::is_directory(output) && fs::is_empty(output)) &&
      !fs::exists(output / quantization::kQuantizedModelFile)) {
    throw std::runtime_error("expected " + output.string() +
                             " to be absent, empty or an earlier quantized model; name another "
                             "--output");
  }
}

void write_output(const fs::path& folder, const fs::path& output,
                  const checkpoint::HuggingFaceConfig& config, const data::Tokenizer* tokenizer,
                  const quantization::QuantizedModel& model) {
  fs::create_directories(folder);
  checkpoint::write_durable_file(folder / "config.json",
                                 checkpoint::huggingface_config_json(config));
  checkpoint::write_durable_file(folder / "generation_config.json",
                                 checkpoint::huggingface_generation_config_json(config));
  if (tokenizer != nullptr) {
    for (const data::TokenizerFile& file : tokenizer->exported_files()) {
      fs::copy_file(file.path, folder / file.exported_name, fs::copy_options::overwrite_existing);
    }
  }
  quantization::write_quantized_model(folder, model);
  checkpoint::replace_directory(folder, output);
}

}  // namespace

int quantize_command(const QuantizeOptions& options) {
  const bool is_auto = options.scheme == "auto";
  const std::optional<Scheme> scheme = is_auto ? std::nullopt : std::optional(scheme_of(options));
  const fs::path directory = model_directory(options.model);
  const auto source = checkpoint::HuggingFaceDirectory::open(directory);
  source.validate();
  const auto tokenizer = load_model_tokenizer(options.model, options.tokenizer);
  const nn::TransformerConfig& config = source.config().transformer;
  const auto windows = calibration_windows({options.calibration, options.samples, options.seq_len},
                                           tokenizer.get(), config);
  if (options.include_head && (is_auto || needs_calibration(method_of(options.method)))) {
    throw UsageError("--include-head: expected method rtn or hqq and a named scheme");
  }

  std::optional<quantization::Autoquant> autoquant;
  if (is_auto) {
    autoquant.emplace(candidate_schemes(options), options.min_sqnr_db, 1);
  }
  check_output(options.output);
  const auto post_training = post_training_options(options, scheme, autoquant);
  StageProgress progress;
  run_blockwise_job(
      {.source = source,
       .output = options.output,
       .windows = windows,
       .fingerprint = describe_job(options, windows),
       .stage = "quantizing",
       .progress = [&](std::string_view stage, double done) { progress.update(stage, done); },
       .convert_block =
           [&](nn::TransformerBlock& block, int64_t layer,
               const quantization::CalibrationState& state) {
             return quantization::quantize_block(block, config, layer, state, post_training);
           },
       .write_output =
           [&](const fs::path& scratch, const quantization::QuantizedModel& model) {
             write_output(scratch, options.output, source.config(), tokenizer.get(), model);
           }},
      quantized_outer_parameters(source, options.include_head, post_training));
  if (autoquant) {
    std::fputs(quantization::autoquant_table(autoquant->choices()).c_str(), stdout);
  }
  std::fprintf(stderr, "wrote %s, %ld bytes\n", options.output.c_str(),
               static_cast<int64_t>(
                   fs::file_size(fs::path(options.output) / quantization::kQuantizedModelFile)));
  return kExitDone;
}

}  // namespace narrowgauge::trainer
