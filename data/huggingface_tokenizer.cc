#include "data/huggingface_tokenizer.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <stdexcept>

#include "data/bpe_tokenizer.h"
#include "data/json_field.h"
#include "data/tokenizer_files.h"
#include "data/tokenizer_json.h"

namespace narrowgauge::data {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

fs::path tokenizer_json_path(const fs::path& path) {
  if (!fs::is_directory(path)) {
    return path;
  }
  if (fs::exists(path / "tokenizer.json")) {
    return path / "tokenizer.json";
  }
  std::string remedy;
  if (fs::exists(path / "tokenizer.model")) {
    remedy = "; it holds tokenizer.model, so try kind: sentencepiece";
  } else if (fs::exists(path / "merges.txt") || fs::exists(path / "vocab.bpe")) {
    remedy = "; it holds GPT-2's files, so try kind: gpt2";
  }
  throw std::runtime_error("expected a tokenizer.json in " + path.string() + ", got none" + remedy);
}

// Tokens of tokenizer_config.json are strings or objects with a content.
std::optional<int32_t> configured_id(const json& config, const char* key,
                                     const std::vector<AddedToken>& added, const BpeModel& model) {
  const auto found = config.find(key);
  if (found == config.end() || found->is_null()) {
    return std::nullopt;
  }
  const std::string content =
      found->is_object() ? json_string(*found, "content") : json_string(config, key);
  for (const AddedToken& token : added) {
    if (token.content == content) {
      return token.id;
    }
  }
  return model.token_id(content);
}

// The end of a document when no file declares it: the names that models give it.
std::optional<int32_t> conventional_eos(const std::vector<AddedToken>& added) {
  constexpr std::array<std::string_view, 4> kNames = {"<|endoftext|>", "<|end_of_text|>", "</s>",
                                                      "<eos>"};
  for (const std::string_view name : kNames) {
    for (const AddedToken& token : added) {
      if (token.special && token.content == name) {
        return token.id;
      }
    }
  }
  return std::nullopt;
}

void declare_ends(const json& config, BpeTokenizerParts& parts) {
  parts.bos_id = configured_id(config, "bos_token", parts.added_tokens, parts.model);
  parts.eos_id = configured_id(config, "eos_token", parts.added_tokens, parts.model);
  if (!parts.bos_id && !parts.document_prefix.empty()) {
    parts.bos_id = parts.document_prefix.front();
  }
  if (!parts.eos_id && !parts.document_suffix.empty()) {
    parts.eos_id = parts.document_suffix.back();
  }
  if (!parts.eos_id) {
    parts.eos_id = conventional_eos(parts.added_tokens);
  }
}

void require_known(const DocumentTemplate& enclosing, const std::vector<AddedToken>& added,
                   const BpeModel& model) {
  int64_t size = static_cast<int64_t>(model.tokens().size());
  for (const AddedToken& token : added) {
    size = std::max<int64_t>(size, token.id + 1);
  }
  for (const auto& ids : {enclosing.prefix, enclosing.suffix}) {
    for (const int32_t id : ids) {
      if (id < 0 || id >= size) {
        throw std::runtime_error("expected ids below the vocabulary's " + std::to_string(size) +
                                 " in the template, got " + std::to_string(id));
      }
    }
  }
}

BpeTokenizerParts assemble(const json& document) {
  require_json_object(document, "a tokenizer");
  const auto component = [&](const char* key) { return document.value(key, json()); };
  PreTokenizerPart pre_tokenizer = parse_pre_tokenizer(component("pre_tokenizer"));
  BpeModel model(parse_bpe_model(json_field(document, "model"), pre_tokenizer.byte_level));
  std::vector<AddedToken> added = parse_added_tokens(component("added_tokens"), model);
  DocumentTemplate enclosing = parse_post_processor(component("post_processor"));
  require_known(enclosing, added, model);
  return {.model = std::move(model),
          .added_tokens = std::move(added),
          .normalizer = parse_normalizer(component("normalizer")),
          .pre_tokenizer = std::move(pre_tokenizer.pre_tokenizer),
          .decoder = parse_decoder(component("decoder")),
          .document_prefix = std::move(enclosing.prefix),
          .document_suffix = std::move(enclosing.suffix),
          .bos_id = {},
          .eos_id = {},
          .files = {},
          .fingerprint = {}};
}

}  // namespace

std::unique_ptr<Tokenizer> load_huggingface_tokenizer(const std::string& path) {
  const fs::path file = tokenizer_json_path(path);
  const fs::path config_file = file.parent_path() / "tokenizer_config.json";
  std::vector<std::string> contents = {read_tokenizer_file(file.string())};
  fs::path current = file;
  try {
    BpeTokenizerParts parts = assemble(parse_json(contents.front()));
    parts.files = {{file.string(), "tokenizer.json"}};
    json config = json::object();
    if (fs::exists(config_file)) {
      current = config_file;
      contents.push_back(read_tokenizer_file(config_file.string()));
      config = parse_json(contents.back());
      require_json_object(config, "the tokenizer's configuration");
      parts.files.push_back({config_file.string(), "tokenizer_config.json"});
    }
    declare_ends(config, parts);
    for (const char* name : {"special_tokens_map.json", "chat_template.jinja"}) {
      const fs::path extra = file.parent_path() / name;
      if (fs::exists(extra)) {
        parts.files.push_back({extra.string(), name});
      }
    }
    parts.fingerprint = tokenizer_fingerprint("huggingface", contents);
    return std::make_unique<BpeTokenizer>(std::move(parts));
  } catch (const std::exception& error) {
    throw std::runtime_error(current.string() + ": " + error.what());
  }
}

}  // namespace narrowgauge::data
