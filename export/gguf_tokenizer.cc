#include "export/gguf_tokenizer.h"

#include <map>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "data/bpe_byte_alphabet.h"
#include "data/gpt2_tokenizer.h"
#include "data/json_field.h"
#include "data/pre_tokenizer.h"
#include "data/sentencepiece_model.h"
#include "data/tokenizer_files.h"
#include "data/tokenizer_json.h"

namespace narrowgauge::exports {
namespace {

using nlohmann::json;

// llama.cpp's kinds of tokens.
enum TokenType : int32_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

// Qwen2's tokenizer.json.
constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

constexpr float kScoreOfUnused = -10000.0F;  // as llama.cpp's scripts have it

[[noreturn]] void refuse(const std::string& what) {
  throw std::runtime_error("llama.cpp has no tokenizer like this one: " + what +
                           "; export another format, or GGUF without a tokenizer");
}

struct Token {
  std::string text;
  int32_t type = kUnused;
  float score = 0;
};

// Tokens by id, of which some may not be there yet.
class TokenTable {
 public:
  explicit TokenTable(int64_t vocab_size) : tokens_(static_cast<size_t>(vocab_size)) {}

  void set(int64_t id, Token token) {
    if (id < 0 || id >= static_cast<int64_t>(tokens_.size())) {
      throw std::runtime_error("expected token ids below the model's " +
                               std::to_string(tokens_.size()) + ", got " + std::to_string(id) +
                               " for '" + token.text + "'");
    }
    tokens_[static_cast<size_t>(id)] = std::move(token);
  }

  // llama.cpp aborts on two tokens of one text.
  void append_to(GgufMetadata& metadata, bool with_scores) {
    std::vector<std::string> texts;
    std::vector<int32_t> types;
    std::vector<float> scores;
    std::set<std::string_view> seen;
    texts.reserve(tokens_.size());
    for (size_t id = 0; id < tokens_.size(); ++id) {
      const Token& token = tokens_[id];
      const bool is_missing = token.text.empty();
      texts.push_back(is_missing ? "[PAD" + std::to_string(id) + "]" : token.text);
      types.push_back(is_missing ? int32_t{kUnused} : token.type);
      scores.push_back(is_missing ? kScoreOfUnused : token.score);
      if (!seen.insert(texts.back()).second) {
        refuse("two tokens are '" + texts.back() + "'");
      }
    }
    metadata.emplace_back("tokenizer.ggml.tokens", std::move(texts));
    if (with_scores) {
      metadata.emplace_back("tokenizer.ggml.scores", std::move(scores));
    }
    metadata.emplace_back("tokenizer.ggml.token_type", std::move(types));
  }

 private:
  std::vector<Token> tokens_;
};

void append_ends(const data::Tokenizer& tokenizer, bool add_bos, bool add_eos,
                 GgufMetadata& metadata) {
  if (const auto bos = tokenizer.bos_id()) {
    metadata.emplace_back("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(*bos));
  }
  if (const auto eos = tokenizer.eos_id()) {
    metadata.emplace_back("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(*eos));
  }
  metadata.emplace_back("tokenizer.ggml.add_bos_token", add_bos);
  metadata.emplace_back("tokenizer.ggml.add_eos_token", add_eos);
}

// --- byte-level BPE ---

// llama.cpp's name of what cuts a text into words.
std::string pre_tokenizer_name(std::string_view pattern, bool ignore_merges) {
  if (pattern == data::kLlama3Pattern) {
    return ignore_merges ? "llama-bpe" : "smaug-bpe";
  }
  if (!ignore_merges && pattern == data::kGpt2Pattern) {
    return "gpt-2";
  }
  if (!ignore_merges && pattern == kQwen2Pattern) {
    return "qwen2";
  }
  refuse("it cuts words by the pattern " + std::string(pattern) +
         (ignore_merges ? " and ignores merges" : ""));
}

GgufMetadata bpe_metadata(const data::BpeSpec& spec, const std::vector<data::AddedToken>& added,
                          const std::string& pre, int64_t vocab_size) {
  TokenTable table(vocab_size);
  for (const auto& [text, id] : spec.vocab) {
    table.set(id, {text, kNormal});
  }
  for (const data::AddedToken& token : added) {
    table.set(token.id, {token.content, token.special ? kControl : kUserDefined});
  }
  std::vector<std::string> merges;
  merges.reserve(spec.merges.size());
  for (const auto& [left, right] : spec.merges) {
    merges.push_back(left + " " + right);
  }
  GgufMetadata metadata = {{"tokenizer.ggml.model", std::string("gpt2")},
                           {"tokenizer.ggml.pre", pre}};
  table.append_to(metadata, false);
  metadata.emplace_back("tokenizer.ggml.merges", std::move(merges));
  return metadata;
}

GgufMetadata bytes_metadata(const data::Tokenizer& tokenizer, int64_t vocab_size) {
  data::BpeSpec spec;
  for (int byte = 0; byte < 256; ++byte) {
    const char character = static_cast<char>(byte);
    spec.vocab.emplace_back(data::to_byte_alphabet({&character, 1}), byte);
  }
  GgufMetadata metadata = bpe_metadata(spec, {}, "gpt-2", vocab_size);
  append_ends(tokenizer, false, false, metadata);
  return metadata;
}

GgufMetadata gpt2_metadata(const data::Tokenizer& tokenizer, const std::string& vocab_file,
                           const std::string& merges_file, int64_t vocab_size) {
  const data::BpeSpec spec = data::parse_gpt2_files(data::read_tokenizer_file(vocab_file),
                                                    data::read_tokenizer_file(merges_file));
  std::vector<data::AddedToken> added;
  if (const auto end = tokenizer.eos_id()) {
    for (const auto& [text, id] : spec.vocab) {
      if (id == *end) {
        added.push_back({.content = text, .id = id, .special = true});
      }
    }
  }
  GgufMetadata metadata = bpe_metadata(spec, added, "gpt-2", vocab_size);
  append_ends(tokenizer, false, false, metadata);
  return metadata;
}

void collect_leaves(const json& component, const char* members, std::vector<json>& leaves) {
  if (component.is_null()) {
    return;
  }
  if (data::json_string(component, "type") != "Sequence") {
    leaves.push_back(component);
    return;
  }
  for (const json& member : data::json_array(component, members)) {
    collect_leaves(member, members, leaves);
  }
}

// The pattern of a pre-tokenizer that consists of one and of ByteLevel.
std::string split_pattern(const json& component) {
  std::vector<json> leaves;
  collect_leaves(component, "pretokenizers", leaves);
  if (leaves.empty() || leaves.size() > 2 ||
      data::json_string(leaves.back(), "type") != "ByteLevel") {
    refuse("its pre_tokenizer is not one Split and ByteLevel, or ByteLevel alone");
  }
  if (data::json_bool(leaves.back(), "add_prefix_space", true)) {
    refuse("it puts a space before a text");
  }
  const bool has_own_pattern = data::json_bool(leaves.back(), "use_regex", true);
  if (leaves.size() == 1 && has_own_pattern) {
    return std::string(data::kGpt2Pattern);
  }
  if (leaves.size() == 1 || has_own_pattern ||
      data::json_string(leaves.front(), "type") != "Split" ||
      data::json_string(leaves.front(), "behavior") != "Isolated" ||
      data::json_bool(leaves.front(), "invert", false)) {
    refuse("its pre_tokenizer is not one isolating Split and ByteLevel");
  }
  return data::json_string(data::json_field(leaves.front(), "pattern"), "Regex");
}

void check_normalizer(const json& component) {
  std::vector<json> leaves;
  collect_leaves(component, "normalizers", leaves);
  for (const json& leaf : leaves) {
    if (data::json_string(leaf, "type") != "NFC") {
      refuse("it has the normalizer " + data::json_string(leaf, "type"));
    }
  }
}

// The template puts this token, alone, at that end; false: it puts nothing there.
bool adds(const std::vector<int32_t>& ids, const std::optional<int32_t>& token, const char* end) {
  if (ids.empty()) {
    return false;
  }
  if (ids.size() != 1 || !token || ids.front() != *token) {
    refuse(std::string("its template puts more at the ") + end +
           " of a document than the token that stands for it");
  }
  return true;
}

GgufMetadata huggingface_metadata(const data::Tokenizer& tokenizer, const std::string& file,
                                  int64_t vocab_size) {
  const json document = data::parse_json(data::read_tokenizer_file(file));
  const auto component = [&](const char* key) { return document.value(key, json()); };
  std::vector<json> leaves;
  collect_leaves(component("pre_tokenizer"), "pretokenizers", leaves);
  if (leaves.empty()) {
    refuse("it is not byte-level BPE (give the sentencepiece model it was made from, if any)");
  }
  const std::string pattern = split_pattern(component("pre_tokenizer"));
  check_normalizer(component("normalizer"));
  const data::BpeSpec spec = data::parse_bpe_model(data::json_field(document, "model"), true);
  const data::BpeModel model(spec);
  const auto added = data::parse_added_tokens(component("added_tokens"), model);
  const data::DocumentTemplate enclosing = data::parse_post_processor(component("post_processor"));
  GgufMetadata metadata =
      bpe_metadata(spec, added, pre_tokenizer_name(pattern, spec.ignore_merges), vocab_size);
  append_ends(tokenizer, adds(enclosing.prefix, tokenizer.bos_id(), "beginning"),
              adds(enclosing.suffix, tokenizer.eos_id(), "end"), metadata);
  return metadata;
}

// --- sentencepiece ---

int32_t token_type(data::SentencepieceModel::PieceType type) {
  using PieceType = data::SentencepieceModel::PieceType;
  switch (type) {
    case PieceType::kUnknown:
      return kUnknown;
    case PieceType::kControl:
      return kControl;
    case PieceType::kUserDefined:
      return kUserDefined;
    case PieceType::kUnused:
      return kUnused;
    case PieceType::kByte:
      return kByte;
    default:
      return kNormal;
  }
}

GgufMetadata sentencepiece_metadata(const data::Tokenizer& tokenizer, const std::string& file,
                                    int64_t vocab_size) {
  const std::string bytes = data::read_tokenizer_file(file);
  const data::SentencepieceModel model = data::parse_sentencepiece_model(bytes);
  if (model.algorithm != data::SentencepieceModel::Algorithm::kBpe) {
    refuse("it is a sentencepiece model other than BPE");
  }
  if (model.has_charsmap || model.remove_extra_whitespaces) {
    refuse("its sentencepiece normalizer '" + model.normalizer + "' changes the text");
  }
  TokenTable table(vocab_size);
  std::optional<uint32_t> unknown;
  bool has_bytes = false;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const auto& piece = model.pieces[id];
    table.set(static_cast<int64_t>(id),
              {std::string(piece.text), token_type(piece.type), piece.score});
    has_bytes = has_bytes || token_type(piece.type) == kByte;
    if (token_type(piece.type) == kUnknown) {
      unknown = static_cast<uint32_t>(id);
    }
  }
  if (!has_bytes) {
    refuse("it has no tokens of bytes for what it does not know");
  }
  GgufMetadata metadata = {{"tokenizer.ggml.model", std::string("llama")},
                           {"tokenizer.ggml.pre", std::string("default")}};
  table.append_to(metadata, true);
  if (unknown) {
    metadata.emplace_back("tokenizer.ggml.unknown_token_id", *unknown);
  }
  metadata.emplace_back("tokenizer.ggml.add_space_prefix", model.add_dummy_prefix);
  append_ends(tokenizer, tokenizer.bos_id().has_value(), false, metadata);
  return metadata;
}

void append_chat_template(const std::map<std::string, std::string>& files, GgufMetadata& metadata) {
  if (const auto file = files.find("chat_template.jinja"); file != files.end()) {
    metadata.emplace_back("tokenizer.chat_template", data::read_tokenizer_file(file->second));
  } else if (const auto config = files.find("tokenizer_config.json"); config != files.end()) {
    const json document = data::parse_json(data::read_tokenizer_file(config->second));
    if (document.contains("chat_template") && document["chat_template"].is_string()) {
      metadata.emplace_back("tokenizer.chat_template",
                            document["chat_template"].get<std::string>());
    }
  }
}

}  // namespace

GgufMetadata gguf_tokenizer_metadata(const data::Tokenizer* tokenizer, int64_t vocab_size) {
  if (tokenizer == nullptr) {
    return {{"tokenizer.ggml.model", std::string("none")}};
  }
  std::map<std::string, std::string> files;  // by the name that a model directory gives them
  for (const data::TokenizerFile& file : tokenizer->exported_files()) {
    files[file.exported_name] = file.path;
  }
  GgufMetadata metadata;
  if (files.empty()) {
    metadata = bytes_metadata(*tokenizer, vocab_size);
  } else if (files.count("tokenizer.json") > 0) {
    metadata = huggingface_metadata(*tokenizer, files["tokenizer.json"], vocab_size);
  } else if (files.count("tokenizer.model") > 0) {
    metadata = sentencepiece_metadata(*tokenizer, files["tokenizer.model"], vocab_size);
  } else {
    metadata = gpt2_metadata(*tokenizer, files["vocab.json"], files["merges.txt"], vocab_size);
  }
  append_chat_template(files, metadata);
  return metadata;
}

}  // namespace narrowgauge::exports
