#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "checkpoint/model_directory.h"
#include "export/export_model.h"
#include "export/export_report.h"
#include "export/weight_layout.h"

namespace narrowgauge::exports {

// Throws c10::Error listing, with reasons, the quantized weights that `layout` cannot hold as they
// are, or saying that there are none at all.
void check_layout(const ExportModel& model, const WeightLayout& layout);

// Writes a Hugging Face directory with the weights of `model` as `layout` has them, and proves it
// before it appears: every file is read back from the disk, and codes, scales and plain tensors
// are compared with the model's, bit for bit. See checkpoint::write_model_directory for what is
// replaced and when. Throws also what check_layout does.
ExportReport write_quantized_directory(const std::filesystem::path& directory,
                                       const ExportModel& model, const WeightLayout& layout,
                                       const std::vector<checkpoint::CopiedFile>& copied_files,
                                       const ExportProgress& progress = nullptr,
                                       int64_t max_shard_bytes = 5'000'000'000);

// Reads the values of the tensors of a directory written so, in the model's dtype, by
// ModelTensor::name.
TensorReader exported_values(const std::filesystem::path& directory, const ExportModel& model,
                             std::shared_ptr<const WeightLayout> layout);

}  // namespace narrowgauge::exports
