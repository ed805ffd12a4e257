#pragma once

#include <filesystem>
#include <optional>

#include "data/tokenizer.h"
#include "export/export_model.h"
#include "export/export_report.h"
#include "export/ggml_type.h"

namespace narrowgauge::exports {

// How GGUF holds weights of this scheme; nothing for a grid it has no blocks for.
std::optional<GgmlType> ggml_type_of(const quantization::Scheme& scheme);

// Throws c10::Error with the weights and the reason unless GGUF holds the model as it is.
void check_gguf(const ExportModel& model);

// Writes one file for llama.cpp: the model's shape, tokenizer (null: token ids alone) and weights.
// Quantized weights keep codes and scales; other matrices become `matrices`, which is F32, F16 or
// BF16; vectors are F32, as llama.cpp has them. F16 is refused where a value would be infinite.
//
// Before the file appears it is read back from the disk, and codes, scales and plain tensors are
// compared with the model's bit for bit. An older file is replaced in one step. Throws
// std::runtime_error (disk, a tokenizer llama.cpp has none like) or c10::Error.
ExportReport write_gguf(const std::filesystem::path& path, const ExportModel& model,
                        const data::Tokenizer* tokenizer, GgmlType matrices,
                        const ExportProgress& progress = nullptr);

// Reads the values of the tensors of a file written so, in the model's dtype and with rows in the
// model's order, by ModelTensor::name.
TensorReader exported_gguf_values(const std::filesystem::path& path, const ExportModel& model);

}  // namespace narrowgauge::exports
