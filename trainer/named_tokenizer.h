#pragma once

#include <memory>
#include <string>

#include "data/tokenizer.h"

namespace narrowgauge::trainer {

// The tokenizer that --tokenizer and --kind name; `kind` may be empty (see data::guess_tokenizer).
// Throws as data::load_tokenizer does. REQUIRES: not "none".
std::unique_ptr<data::Tokenizer> open_named_tokenizer(const std::string& path,
                                                      const std::string& kind);

}  // namespace narrowgauge::trainer
