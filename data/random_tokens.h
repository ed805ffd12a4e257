#pragma once

#include <cstdint>
#include <memory>

#include "data/token_storage.h"

namespace narrowgauge::data {

// Ids uniform in [0, vocab_size), each a hash of (seed, position): an unlimited data set for
// benchmarks that costs no disk and is the same on every machine.
// Throws std::invalid_argument when vocab_size < 1.
std::unique_ptr<TokenStorage> make_random_tokens(int64_t vocab_size, uint64_t seed,
                                                 int64_t num_tokens);

}  // namespace narrowgauge::data
