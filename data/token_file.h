#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "data/megatron_file.h"
#include "data/token_storage.h"

namespace narrowgauge::data {

// Opens a file of ids that another program has written. By its first bytes it is one of
//   llm.c     1024 bytes of int32: magic 20240520 and version 1 (uint16 ids follow) or magic
//             20240801 and version 7 (uint32 ids), then the number of ids
//   nanoGPT   uint16 ids from the first byte to the last
// The file is one document. With NAME.idx beside it NAME.bin is Megatron-LM's, see megatron_file.h.
// Throws std::runtime_error with the path, both numbers where two
// disagree, when the file is not one of these.
//
// Ids are checked against vocab_size (0: not checked), those of the first 16 M tokens here and all
// others when they are read, since reading a large file twice takes minutes; the error names the
// file, the position and the id.
std::unique_ptr<TokenStorage> open_token_file(const std::string& path, int64_t vocab_size,
                                              DocumentHash hash = DocumentHash::kContent);

}  // namespace narrowgauge::data
