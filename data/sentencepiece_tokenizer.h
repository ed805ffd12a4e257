#pragma once

#include <memory>
#include <string>

#include "data/tokenizer.h"

namespace narrowgauge::data {

// Loads a sentencepiece model, or the tokenizer.model in the directory `path`. Control symbols such
// as "<s>" written in a text are text, as for sentencepiece itself. encode_document puts BOS before
// a document where the model has one and nothing behind it, which is what Llama's tokenizers do
// (add_bos_token on, add_eos_token off).
std::unique_ptr<Tokenizer> load_sentencepiece_tokenizer(const std::string& path);

}  // namespace narrowgauge::data
