#include "trainer/quantize_command.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "checkpoint/huggingface_directory.h"
#include "quantization/autoquant.h"
#include "quantization/scheme.h"
#include "trainer/load_model.h"
#include "trainer/quantize_model.h"
#include "trainer/scored_text.h"
#include "trainer/stage_progress.h"

namespace narrowgauge::trainer {
namespace {

using quantization::Method;
using quantization::Scheme;
using quantization::SchemeOptions;

constexpr int64_t kLongestDefaultWindow = 2048;

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

// Windows of one length, spread evenly over the text's windows.
std::vector<std::vector<int64_t>> calibration_windows(const QuantizeOptions& options,
                                                      const data::Tokenizer* tokenizer,
                                                      const nn::TransformerConfig& config) {
  if (options.calibration.empty()) {
    return {};
  }
  const int64_t seq_len =
      options.seq_len > 0 ? options.seq_len : std::min(config.max_seq_len, kLongestDefaultWindow);
  if (seq_len > config.max_seq_len) {
    throw UsageError("--seq-len: expected at most the model's " +
                     std::to_string(config.max_seq_len) + ", got " + std::to_string(seq_len));
  }
  std::vector<int64_t> stream;
  for (const ScoredDocument& document :
       read_scored_documents(options.calibration, tokenizer, config.vocab_size)) {
    stream.insert(stream.end(), document.tokens.begin(), document.tokens.end());
  }
  const auto available = static_cast<int64_t>(stream.size()) / seq_len;
  if (available == 0) {
    throw std::runtime_error("--calibration: expected at least " + std::to_string(seq_len) +
                             " tokens, got " + std::to_string(stream.size()) +
                             "; name more text or a smaller --seq-len");
  }
  const int64_t count = std::min(options.samples, available);
  std::vector<std::vector<int64_t>> windows;
  for (int64_t i = 0; i < count; ++i) {
    const auto begin = stream.begin() + available * i / count * seq_len;
    windows.emplace_back(begin, begin + seq_len);
  }
  return windows;
}

std::string fingerprint(const QuantizeOptions& options,
                        const std::vector<std::vector<int64_t>>& windows) {
  uint64_t hash = 0xcbf29ce484222325ULL;  // FNV-1a
  for (const auto& window : windows) {
    for (const int64_t token : window) {
      hash = (hash ^ static_cast<uint64_t>(token)) * 0x100000001b3ULL;
    }
  }
  const nlohmann::ordered_json job = {{"model", std::filesystem::absolute(options.model).string()},
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
                                      {"calibration", hash}};
  return job.dump() + "\n";
}

}  // namespace

int quantize_command(const QuantizeOptions& options) {
  const bool is_auto = options.scheme == "auto";
  const std::optional<Scheme> scheme = is_auto ? std::nullopt : std::optional(scheme_of(options));
  const std::filesystem::path directory = model_directory(options.model);
  const auto source = checkpoint::HuggingFaceDirectory::open(directory);
  source.validate();
  const auto tokenizer = load_model_tokenizer(options.model, options.tokenizer);
  const auto windows = calibration_windows(options, tokenizer.get(), source.config().transformer);
  if (options.include_head && (is_auto || needs_calibration(method_of(options.method)))) {
    throw UsageError("--include-head: expected method rtn or hqq and a named scheme");
  }

  std::optional<quantization::Autoquant> autoquant;
  if (is_auto) {
    autoquant.emplace(candidate_schemes(options), options.min_sqnr_db, 1);
  }
  StageProgress progress;
  QuantizeJob job{
      .source = source,
      .tokenizer = tokenizer.get(),
      .output = options.output,
      .options = {},
      .include_head = options.include_head,
      .windows = windows,
      .fingerprint = fingerprint(options, windows),
      .progress = [&](std::string_view stage, double done) { progress.update(stage, done); }};
  job.options.method = method_of(options.method);
  job.options.act_order = options.act_order;
  job.options.smooth_alpha = options.alpha;
  job.options.scheme = [&](const std::string& name, const at::Tensor& weight,
                           const quantization::InputStatistics* inputs) {
    return autoquant ? autoquant->choose(name, weight, *inputs) : scheme;
  };
  quantize_model(job);
  if (autoquant) {
    std::fputs(quantization::autoquant_table(autoquant->choices()).c_str(), stdout);
  }
  std::fprintf(stderr, "wrote %s, %ld bytes\n", options.output.c_str(),
               static_cast<int64_t>(std::filesystem::file_size(
                   std::filesystem::path(options.output) / quantization::kQuantizedModelFile)));
  return kExitDone;
}

}  // namespace narrowgauge::trainer
