#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "data/token_storage.h"

namespace narrowgauge::data {

// Tokens [begin, end) of a stream.
struct TokenRange {
  std::shared_ptr<const TokenStorage> storage;
  int64_t begin = 0;
  int64_t end = 0;
};

struct HeldOut {
  std::vector<TokenRange> train;
  std::vector<TokenRange> validation;
};

// Takes about `fraction` of the tokens out of `storages` for validation; 0 takes none. The rest,
// in its order, is for training. The choice depends on the data alone, never on a seed.
//
// With documents enough that the fraction amounts to at least one, whole documents are taken in
// the order of a hash of their content until the taken tokens are about the fraction. A document
// therefore stays on its side when others are added, and equal documents are on the same side: no
// copy of a held-out text is trained on.
//
// Otherwise the tail of the stream is taken, from token int(n * (1 - fraction)) on, as nanoGPT
// does with a single file.
//
// Throws std::invalid_argument unless 0 <= fraction < 1.
HeldOut hold_out(const std::vector<std::shared_ptr<const TokenStorage>>& storages, double fraction);

}  // namespace narrowgauge::data
