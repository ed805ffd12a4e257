#pragma once

#include <filesystem>
#include <string>

#include "checkpoint/checkpoint_reader.h"

namespace narrowgauge::checkpoint {

// Writes the tensors of a checkpoint whose names begin with `prefix` as one safetensors file,
// whole, whatever ranks wrote them, under their names without the prefix. Bytes are verified on the
// way and never all in memory. The file's metadata holds "step" and "state" of the checkpoint.
// Throws std::runtime_error; nothing stays under `path` then. No torch.
void write_whole_tensors(CheckpointReader& reader, const std::string& prefix,
                         const std::filesystem::path& path,
                         const CheckpointReader::Progress& progress = {});

}  // namespace narrowgauge::checkpoint
