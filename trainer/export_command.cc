#include "trainer/export_command.h"

#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>

#include "checkpoint/huggingface_directory.h"
#include "data/tokenizer.h"
#include "export/compressed_tensors_layout.h"
#include "export/fine_grained_fp8_layout.h"
#include "export/gguf_model.h"
#include "export/quantized_directory.h"
#include "export/torchao_layout.h"
#include "trainer/dtype.h"
#include "trainer/export_run.h"
#include "trainer/export_source.h"
#include "trainer/logits_check.h"
#include "trainer/stage_progress.h"

namespace narrowgauge::trainer {
namespace {

namespace fs = std::filesystem;

constexpr const char* kHuggingFace = "huggingface";
constexpr const char* kFineGrainedFp8 = "fine-grained-fp8";
constexpr const char* kGguf = "gguf";

fs::path output_path(const ExportOptions& options) {
  if (!options.output.empty()) {
    return options.output;
  }
  const fs::path model = options.model;
  return options.format == kHuggingFace ? model / "hf"
         : options.format == kGguf      ? model / "model.gguf"
                                        : model / ("hf-" + options.format);
}

std::shared_ptr<const exports::WeightLayout> layout_of(const std::string& format) {
  return format == "torchao"              ? exports::torchao_layout()
         : format == "compressed-tensors" ? exports::compressed_tensors_layout()
                                          : exports::fine_grained_fp8_layout();
}

// What the values were quantized from, and activations are computed in, is part of the grid.
void apply_dtype(const std::string& dtype, ExportSource& source) {
  if (dtype == "auto") {
    return;
  }
  if (!source.model.schemes.empty() && parse_dtype(dtype) != source.model.dtype) {
    throw UsageError("--dtype " + dtype + ": the weights were quantized from " +
                     c10::toString(source.model.dtype) +
                     ", and their scales are in it; leave --dtype out");
  }
  source.model.dtype = parse_dtype(dtype);
}

exports::GgmlType ggml_type(at::ScalarType dtype) {
  return dtype == at::kFloat  ? exports::GgmlType::kF32
         : dtype == at::kHalf ? exports::GgmlType::kF16
                              : exports::GgmlType::kBf16;
}

void print_report(const exports::ExportReport& report) {
  std::fprintf(stderr,
               "read back and equal bit for bit: %lld quantized weights (%lld codes, %lld scales), "
               "%lld other tensors; %.1f MB\n",
               static_cast<long long>(report.quantized_weights),
               static_cast<long long>(report.codes), static_cast<long long>(report.scales),
               static_cast<long long>(report.plain_tensors),
               static_cast<double>(report.bytes) / 1e6);
}

void print_difference(const char* what, const LogitsDifference& difference) {
  std::fprintf(stderr,
               "logits of %lld tokens, %s: differ by at most %.3g (of %.3g), same first "
               "choice %lld of %lld\n",
               static_cast<long long>(difference.tokens), what, difference.largest,
               difference.scale, static_cast<long long>(difference.same_argmax),
               static_cast<long long>(difference.tokens));
}

// The first difference says what the file does to the model, the second what a runtime may do that
// computes more precisely than the model's own forward.
void check_logits(const exports::ExportModel& model, const exports::TensorReader& exported,
                  int64_t tokens) {
  if (tokens == 0) {
    return;
  }
  const nn::TransformerConfig& shape = model.config.transformer;
  const auto weights = [&](const std::string& name) { return exports::model_values(model, name); };
  const at::Tensor expected = logits_of(shape, weights, model.dtype, tokens);
  const at::Tensor actual = logits_of(shape, exported, model.dtype, tokens);
  print_difference("the file's weights for the model's", compare_logits(expected, actual));
  if (model.dtype != at::kFloat) {
    print_difference("the file's weights in float32",
                     compare_logits(expected, logits_of(shape, exported, at::kFloat, tokens)));
  }
}

void export_plain(const ExportSource& source, const fs::path& output, at::ScalarType dtype) {
  const exports::ExportModel& model = source.model;
  if (!model.schemes.empty()) {
    throw UsageError("the model is quantized; --format huggingface holds plain weights alone");
  }
  const nn::TransformerConfig& shape = model.config.transformer;
  std::map<std::string, checkpoint::ParameterSpec> specs;
  for (checkpoint::ParameterSpec& spec : checkpoint::parameter_specs(shape)) {
    specs[spec.name] = spec;
  }
  checkpoint::HuggingFaceWriteOptions options;
  options.dtype = dtype;
  options.copied_files = tokenizer_files(source.tokenizer.get());
  checkpoint::write_huggingface_directory(
      output, model.config,
      [&](const std::string& name) {
        return exports::fused_parameter(shape, specs.at(name), model.plain);
      },
      options);
}

void export_gguf(const ExportOptions& options, const ExportSource& source, const fs::path& output) {
  StageProgress progress;
  print_report(exports::write_gguf(
      output, source.model, source.tokenizer.get(), ggml_type(source.model.dtype),
      [&](double fraction, const char* stage) { progress.update(stage, fraction); }));
  check_logits(source.model, exports::exported_gguf_values(output, source.model),
               options.logits_tokens);
}

void export_quantized(const ExportOptions& options, ExportSource& source, const fs::path& output) {
  const auto layout = layout_of(options.format);
  if (options.format == kFineGrainedFp8) {
    quantize_blockwise(source, options.model);
  }
  StageProgress progress;
  print_report(exports::write_quantized_directory(
      output, source.model, *layout, tokenizer_files(source.tokenizer.get()),
      [&](double fraction, const char* stage) { progress.update(stage, fraction); }));
  check_logits(source.model, exports::exported_values(output, source.model, layout),
               options.logits_tokens);
}

}  // namespace

int export_command(const ExportOptions& options) {
  if (!fs::exists(fs::path(options.model))) {
    throw UsageError(options.model + ": there is no such model");
  }
  ExportSource source =
      open_export_source(options.model, options.step,
                         options.format != kHuggingFace && options.format != kFineGrainedFp8);
  if (!options.tokenizer.empty()) {
    source.tokenizer = data::load_tokenizer(data::guess_tokenizer(options.tokenizer));
  }
  const fs::path output = output_path(options);
  if (options.format == kHuggingFace) {
    export_plain(source, output, options.dtype == "auto" ? at::kFloat : parse_dtype(options.dtype));
  } else {
    apply_dtype(options.dtype, source);
    options.format == kGguf ? export_gguf(options, source, output)
                            : export_quantized(options, source, output);
  }
  std::fprintf(stderr, "exported %s from %s\n", output.c_str(), source.origin.c_str());
  return kExitDone;
}

}  // namespace narrowgauge::trainer
