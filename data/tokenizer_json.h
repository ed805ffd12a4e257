#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "data/bpe_model.h"
#include "data/pre_tokenizer.h"
#include "data/tokenizer_added_tokens.h"
#include "data/tokenizer_decoder.h"
#include "data/tokenizer_normalizer.h"

namespace narrowgauge::data {

// The components of a tokenizer.json, one function each. All throw std::runtime_error that names
// the component or the key and what is wrong.

// Throws with line and column when text is not JSON.
nlohmann::json parse_json(const std::string& text);

// -1 for what is no number or does not fit, which no vocabulary accepts.
int32_t parse_token_id(const nlohmann::json& id);

struct PreTokenizerPart {
  PreTokenizer pre_tokenizer;
  bool byte_level = false;
};
PreTokenizerPart parse_pre_tokenizer(const nlohmann::json& component);

TokenizerNormalizer parse_normalizer(const nlohmann::json& component);

TokenDecoder parse_decoder(const nlohmann::json& component);

BpeSpec parse_bpe_model(const nlohmann::json& component, bool byte_level);

// What encloses a document: ids before and after the text.
struct DocumentTemplate {
  std::vector<int32_t> prefix;
  std::vector<int32_t> suffix;
};
DocumentTemplate parse_post_processor(const nlohmann::json& component);

// With the ids that Hugging Face gives them: the model's where it knows the content, else the next
// free one; the ids in the file do not count. Special tokens come first, then file order.
std::vector<AddedToken> parse_added_tokens(const nlohmann::json& tokens, const BpeModel& model);

}  // namespace narrowgauge::data
