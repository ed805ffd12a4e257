#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "data/tokenizer.h"
#include "export/export_model.h"
#include "trainer/config.h"

namespace narrowgauge::trainer {

// What `narrowgauge export` reads.
struct ExportSource {
  exports::ExportModel model;
  std::shared_ptr<const data::Tokenizer> tokenizer;  // null where there is none
  std::filesystem::path origin;                      // the checkpoint or the directory
};

// `path` is a quantized model of ours (quantized.safetensors), a Hugging Face directory, or a run
// directory. Of a run: the newest checkpoint, or that of `step`, in the dtype in which its forward
// computes, adapters merged; with take_quantized and a section `qat` quantized as the last forward
// did. Plain weights are read one at a time, when they are asked for; quantized ones are held
// whole. Throws std::runtime_error for what is missing or damaged.
ExportSource open_export_source(const std::filesystem::path& path, int64_t step,
                                bool take_quantized);

// Of a run trained with float8.recipe_name=blockwise: its linears as the last forward cast them,
// which is what --format fine-grained-fp8 holds. Throws std::runtime_error for other models, and
// for q, k, v, gate or up whose rows share a square of 128 x 128 with their neighbour's.
void quantize_blockwise(ExportSource& source, const std::filesystem::path& run);

}  // namespace narrowgauge::trainer
