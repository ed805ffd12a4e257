#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "data/bpe_model.h"
#include "data/tokenizer.h"

namespace narrowgauge::data {

// Loads GPT-2's byte-level BPE: encoder.json and vocab.bpe as OpenAI names them, or vocab.json and
// merges.txt as Hugging Face does. `path` is their directory, or one of the two, whose name may
// have a prefix that the other file shares (gpt2_encoder.json, gpt2_vocab.bpe). "<|endoftext|>" in
// a text is that token where the vocabulary has it, as in transformers; it begins and ends
// documents, but encode_document adds nothing.
//
// Throws std::runtime_error that begins with the file's name.
std::unique_ptr<Tokenizer> load_gpt2_tokenizer(const std::string& path);

// The vocabulary and merges in the texts of the two files, JSON and lines. Throws
// std::runtime_error.
BpeSpec parse_gpt2_files(const std::string& vocab, std::string_view merges);

}  // namespace narrowgauge::data
