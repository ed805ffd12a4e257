#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "data/token_storage.h"

namespace narrowgauge::data {

// What a document is known by for the held-out split.
enum class DocumentHash {
  kContent,   // its ids: reads the whole file
  kPosition,  // its place in the file: reads none of it
};

// Opens NAME.bin with NAME.idx, as Megatron-LM's and NeMo's preprocessing writes them (the format
// stands at the top of megatron_file.cc). 16 bytes of memory a document; ids come from disk as they
// are read. Throws std::runtime_error with the path and both numbers where two disagree, and for
// what no writer leaves: sequences with gaps, other types than uint16 and int32, modes.
//
// Ids are checked against vocab_size (0: not checked) when they are read; the error names the file,
// the position and the id.
std::unique_ptr<TokenStorage> open_megatron_file(const std::string& bin_path, int64_t vocab_size,
                                                 DocumentHash hash);

// NAME.idx of NAME.bin.
std::string megatron_index_path(const std::string& bin_path);

}  // namespace narrowgauge::data
