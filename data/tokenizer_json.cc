#include "data/tokenizer_json.h"

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <stdexcept>
#include <unordered_set>

#include "data/json_field.h"

namespace narrowgauge::data {
namespace {

using nlohmann::json;

// Real files nest a dozen levels. Recursion over hostile ones (here and in nlohmann) must end.
constexpr int kMaxDepth = 64;

[[noreturn]] void throw_unsupported(const std::string& role, const std::string& what,
                                    const std::string& supported) {
  throw std::runtime_error("unsupported " + role + " '" + what + "'; expected one of " + supported);
}

std::string type_of(const json& component) { return json_string(component, "type"); }

// Calls visit(component) for each leaf of nested Sequences, in order; null has none.
void for_each_leaf(const json& component, const char* members,
                   const std::function<void(const json&)>& visit) {
  if (component.is_null()) {
    return;
  }
  if (type_of(component) != "Sequence") {
    visit(component);
    return;
  }
  for (const json& member : json_array(component, members)) {
    for_each_leaf(member, members, visit);
  }
}

// {"String": ...} or {"Regex": ...}
UnicodeRegex parse_pattern(const json& pattern) {
  if (pattern.contains("Regex")) {
    return UnicodeRegex(json_string(pattern, "Regex"));
  }
  const std::string literal = json_string(pattern, "String");
  if (literal.empty()) {
    throw std::runtime_error("expected a pattern, got an empty string");
  }
  return UnicodeRegex::for_literal(literal);
}

SplitBehavior parse_behavior(const std::string& name) {
  constexpr std::array<std::pair<std::string_view, SplitBehavior>, 5> kBehaviors = {
      {{"Isolated", SplitBehavior::kIsolated},
       {"Removed", SplitBehavior::kRemoved},
       {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
       {"MergedWithNext", SplitBehavior::kMergedWithNext},
       {"Contiguous", SplitBehavior::kContiguous}}};
  for (const auto& [known, behavior] : kBehaviors) {
    if (name == known) {
      return behavior;
    }
  }
  throw_unsupported("split behavior", name,
                    "Isolated, Removed, MergedWithPrevious, MergedWithNext, Contiguous");
}

void add_pre_tokenizer(const json& component, PreTokenizerPart& part) {
  const std::string type = type_of(component);
  if (part.byte_level) {
    throw std::runtime_error("expected ByteLevel as the last pre_tokenizer, got '" + type +
                             "' behind it");
  }
  PreTokenizer& result = part.pre_tokenizer;
  if (type == "ByteLevel") {
    part.byte_level = true;
    if (json_bool(component, "add_prefix_space", true)) {
      result.add_prefix_space();
    }
    if (json_bool(component, "use_regex", true)) {
      result.add_split(UnicodeRegex(kGpt2Pattern), SplitBehavior::kIsolated, false);
    }
  } else if (type == "Split") {
    result.add_split(parse_pattern(json_field(component, "pattern")),
                     parse_behavior(json_string(component, "behavior")),
                     json_bool(component, "invert", false));
  } else if (type == "Digits") {
    result.add_split(UnicodeRegex(R"(\p{N})"),
                     json_bool(component, "individual_digits", false) ? SplitBehavior::kIsolated
                                                                      : SplitBehavior::kContiguous,
                     false);
  } else if (type == "Punctuation") {
    result.add_split(UnicodeRegex(R"([\p{P}\x{21}-\x{2f}\x{3a}-\x{40}\x{5b}-\x{60}\x{7b}-\x{7e}])"),
                     parse_behavior(json_string(component, "behavior", "Isolated")), false);
  } else {
    throw_unsupported("pre_tokenizer", type, "ByteLevel, Split, Digits, Punctuation, Sequence");
  }
}

void add_normalizer(const json& component, TokenizerNormalizer& normalizer) {
  constexpr std::array<std::pair<std::string_view, NormalForm>, 4> kForms = {
      {{"NFC", NormalForm::kNfc},
       {"NFD", NormalForm::kNfd},
       {"NFKC", NormalForm::kNfkc},
       {"NFKD", NormalForm::kNfkd}}};
  const std::string type = type_of(component);
  for (const auto& [name, form] : kForms) {
    if (type == name) {
      return normalizer.add_unicode(form);
    }
  }
  if (type == "Prepend") {
    normalizer.add_prepend(json_string(component, "prepend"));
  } else if (type == "Replace") {
    normalizer.add_replace(parse_pattern(json_field(component, "pattern")),
                           json_string(component, "content"));
  } else {
    throw_unsupported("normalizer", type, "NFC, NFD, NFKC, NFKD, Prepend, Replace, Sequence");
  }
}

void add_decoder(const json& component, TokenDecoder& decoder) {
  const std::string type = type_of(component);
  if (type == "ByteLevel") {
    decoder.add_byte_level();
  } else if (type == "ByteFallback") {
    decoder.add_byte_fallback();
  } else if (type == "Fuse") {
    decoder.add_fuse();
  } else if (type == "Replace") {
    const std::string pattern = json_string(json_field(component, "pattern"), "String");
    if (pattern.empty()) {
      throw std::runtime_error("expected a pattern in decoder Replace, got an empty string");
    }
    decoder.add_replace(pattern, json_string(component, "content"));
  } else if (type == "Strip") {
    const std::string content = json_string(component, "content");
    if (content.size() != 1) {
      throw std::runtime_error("expected one ASCII character in decoder Strip, got '" + content +
                               "'");
    }
    decoder.add_strip(content.front(), json_unsigned(component, "start"),
                      json_unsigned(component, "stop"));
  } else {
    throw_unsupported("decoder", type, "ByteLevel, Replace, ByteFallback, Fuse, Strip, Sequence");
  }
}

std::pair<std::string, std::string> parse_merge(const json& merge, size_t rank) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return {merge[0].get<std::string>(), merge[1].get<std::string>()};
  }
  const std::string text = merge.is_string() ? merge.get<std::string>() : "";
  const size_t space = text.find(' ');
  if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
    throw std::runtime_error("expected two tokens in merge " + std::to_string(rank) + ", got " +
                             merge.dump());
  }
  return {text.substr(0, space), text.substr(space + 1)};
}

void refuse_unless_empty(const json& model, const char* key) {
  const auto found = model.find(key);
  const bool empty =
      found == model.end() || found->is_null() || *found == json("") || *found == 0.0;
  if (!empty) {
    throw std::runtime_error(std::string("expected no ") + key + " in the model, got " +
                             found->dump() + "; it is not supported");
  }
}

std::vector<int32_t> template_ids(const json& piece, const json& special_tokens) {
  const std::string name = json_string(json_field(piece, "SpecialToken"), "id");
  std::vector<int32_t> ids;
  for (const json& id : json_array(json_field(special_tokens, name.c_str()), "ids")) {
    ids.push_back(parse_token_id(id));
  }
  return ids;
}

void enclose(const json& processor, DocumentTemplate& result) {
  const std::string type = type_of(processor);
  if (type == "ByteLevel") {  // trims offsets, which nobody asks for here
    return;
  }
  if (type != "TemplateProcessing") {
    throw_unsupported("post_processor", type, "TemplateProcessing, ByteLevel, Sequence");
  }
  std::vector<int32_t> prefix, suffix;
  int num_texts = 0;
  for (const json& piece : json_array(processor, "single")) {
    if (piece.contains("Sequence")) {
      ++num_texts;
      continue;
    }
    std::vector<int32_t>& side = num_texts == 0 ? prefix : suffix;
    const auto ids = template_ids(piece, json_field(processor, "special_tokens"));
    side.insert(side.end(), ids.begin(), ids.end());
  }
  if (num_texts != 1) {
    throw std::runtime_error("expected the text once in the template, got it " +
                             std::to_string(num_texts) + " times");
  }
  result.prefix.insert(result.prefix.begin(), prefix.begin(), prefix.end());
  result.suffix.insert(result.suffix.end(), suffix.begin(), suffix.end());
}

}  // namespace

json parse_json(const std::string& text) {
  const auto limit_depth = [](int depth, json::parse_event_t, json&) {
    if (depth > kMaxDepth) {
      throw std::runtime_error("expected JSON of at most " + std::to_string(kMaxDepth) +
                               " nested levels, got more");
    }
    return true;
  };
  try {
    return json::parse(text, limit_depth);
  } catch (const json::parse_error& error) {
    // nlohmann writes "[json.exception.parse_error.101] parse error at line 1, column 7: reason".
    const std::string what = error.what();
    const size_t bracket = what.find("] ");
    throw std::runtime_error("expected JSON, got a " +
                             (bracket == std::string::npos ? what : what.substr(bracket + 2)));
  }
}

int32_t parse_token_id(const json& id) {
  constexpr uint64_t kMax = std::numeric_limits<int32_t>::max();
  return id.is_number_unsigned() && id.get<uint64_t>() <= kMax ? id.get<int32_t>() : -1;
}

PreTokenizerPart parse_pre_tokenizer(const json& component) {
  PreTokenizerPart part;
  for_each_leaf(component, "pretokenizers",
                [&](const json& leaf) { add_pre_tokenizer(leaf, part); });
  return part;
}

TokenizerNormalizer parse_normalizer(const json& component) {
  TokenizerNormalizer normalizer;
  for_each_leaf(component, "normalizers",
                [&](const json& leaf) { add_normalizer(leaf, normalizer); });
  return normalizer;
}

TokenDecoder parse_decoder(const json& component) {
  TokenDecoder decoder;
  for_each_leaf(component, "decoders", [&](const json& leaf) { add_decoder(leaf, decoder); });
  return decoder;
}

BpeSpec parse_bpe_model(const json& component, bool byte_level) {
  const std::string type = json_string(component, "type", "BPE");
  if (type != "BPE") {
    throw_unsupported("model", type, "BPE");
  }
  refuse_unless_empty(component, "dropout");
  refuse_unless_empty(component, "continuing_subword_prefix");
  refuse_unless_empty(component, "end_of_word_suffix");
  BpeSpec spec;
  spec.byte_level = byte_level;
  spec.ignore_merges = json_bool(component, "ignore_merges", false);
  spec.byte_fallback = json_bool(component, "byte_fallback", false);
  spec.fuse_unk = json_bool(component, "fuse_unk", false);
  const auto unk = component.find("unk_token");
  if (unk != component.end() && !unk->is_null()) {
    spec.unk_token = json_string(component, "unk_token");
  }
  for (const auto& [token, id] : json_object(component, "vocab").items()) {
    spec.vocab.emplace_back(token, parse_token_id(id));
  }
  const json& merges = json_array(component, "merges");
  spec.merges.reserve(merges.size());
  for (const json& merge : merges) {
    spec.merges.push_back(parse_merge(merge, spec.merges.size()));
  }
  return spec;
}

DocumentTemplate parse_post_processor(const json& component) {
  DocumentTemplate result;
  for_each_leaf(component, "processors", [&](const json& leaf) { enclose(leaf, result); });
  return result;
}

std::vector<AddedToken> parse_added_tokens(const json& tokens, const BpeModel& model) {
  std::vector<AddedToken> added;
  std::unordered_set<std::string> seen;
  int64_t next_id = model.num_tokens();
  if (!tokens.is_array() && !tokens.is_null()) {
    throw std::runtime_error(std::string("expected an array in \"added_tokens\", got ") +
                             tokens.type_name());
  }
  for (const json& entry : tokens) {
    AddedToken token;
    token.content = json_string(entry, "content");
    if (token.content.empty() || !seen.insert(token.content).second) {
      continue;
    }
    const auto model_id = model.token_id(token.content);
    token.id = model_id ? *model_id : static_cast<int32_t>(next_id);
    next_id = std::max<int64_t>(next_id, token.id + 1);
    token.special = json_bool(entry, "special", false);
    token.single_word = json_bool(entry, "single_word", false);
    token.lstrip = json_bool(entry, "lstrip", false);
    token.rstrip = json_bool(entry, "rstrip", false);
    token.normalized = json_bool(entry, "normalized", !token.special);
    added.push_back(std::move(token));
  }
  std::stable_partition(added.begin(), added.end(),
                        [](const AddedToken& token) { return token.special; });
  return added;
}

}  // namespace narrowgauge::data
