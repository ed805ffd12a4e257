#include "data/gpt2_tokenizer.h"

#include <array>
#include <filesystem>
#include <optional>
#include <stdexcept>

#include "data/bpe_tokenizer.h"
#include "data/tokenizer_files.h"
#include "data/tokenizer_json.h"

namespace narrowgauge::data {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

struct Gpt2Files {
  fs::path vocab;
  fs::path merges;
};

// Vocabulary and merges have these endings, in pairs.
constexpr std::array<std::pair<std::string_view, std::string_view>, 2> kNames = {
    {{"encoder.json", "vocab.bpe"}, {"vocab.json", "merges.txt"}}};

std::optional<Gpt2Files> find_files(const fs::path& path) {
  const std::string name = path.filename().string();
  for (const auto& [vocab, merges] : kNames) {
    if (fs::is_directory(path)) {
      if (fs::exists(path / vocab) && fs::exists(path / merges)) {
        return Gpt2Files{path / vocab, path / merges};
      }
      continue;
    }
    for (const std::string_view ending : {vocab, merges}) {
      if (name.ends_with(ending)) {
        const std::string prefix = name.substr(0, name.size() - ending.size());
        return Gpt2Files{path.parent_path() / (prefix + std::string(vocab)),
                         path.parent_path() / (prefix + std::string(merges))};
      }
    }
  }
  return std::nullopt;
}

std::vector<std::pair<std::string, int32_t>> parse_vocab(const std::string& text) {
  const json document = parse_json(text);
  if (!document.is_object()) {
    throw std::runtime_error("expected an object of tokens and ids, got " +
                             std::string(document.type_name()));
  }
  std::vector<std::pair<std::string, int32_t>> vocab;
  for (const auto& [token, id] : document.items()) {
    vocab.emplace_back(token, parse_token_id(id));
  }
  return vocab;
}

// A line a merge, two tokens and a space; "#version" lines and empty ones do not count.
std::vector<std::pair<std::string, std::string>> parse_merges(std::string_view text) {
  std::vector<std::pair<std::string, std::string>> merges;
  for (size_t number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) {
      line.remove_suffix(1);
    }
    if (line.empty() || line.starts_with("#version")) {
      continue;
    }
    const size_t space = line.find(' ');
    if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos) {
      throw std::runtime_error("expected two tokens in line " + std::to_string(number) + ", got '" +
                               std::string(line) + "'");
    }
    merges.emplace_back(line.substr(0, space), line.substr(space + 1));
  }
  return merges;
}

template <typename Function>
auto with_file_name(const fs::path& file, const Function& function) {
  try {
    return function();
  } catch (const std::exception& error) {
    throw std::runtime_error(file.string() + ": " + error.what());
  }
}

}  // namespace

BpeSpec parse_gpt2_files(const std::string& vocab, std::string_view merges) {
  BpeSpec spec;
  spec.vocab = parse_vocab(vocab);
  spec.merges = parse_merges(merges);
  return spec;
}

std::unique_ptr<Tokenizer> load_gpt2_tokenizer(const std::string& path) {
  const std::optional<Gpt2Files> files = find_files(path);
  if (!files) {
    throw std::runtime_error(
        "expected encoder.json and vocab.bpe, or vocab.json and merges.txt, "
        "got " +
        path + "; name their directory or one of them");
  }
  const std::vector<std::string> contents = {read_tokenizer_file(files->vocab.string()),
                                             read_tokenizer_file(files->merges.string())};
  BpeSpec spec;
  spec.vocab = with_file_name(files->vocab, [&] { return parse_vocab(contents[0]); });
  spec.merges = with_file_name(files->merges, [&] { return parse_merges(contents[1]); });
  BpeModel model = with_file_name(files->merges, [&] { return BpeModel(spec); });

  constexpr std::string_view kEndOfText = "<|endoftext|>";
  const std::optional<int32_t> end_of_text = model.token_id(kEndOfText);
  std::vector<AddedToken> added;
  if (end_of_text) {
    added.push_back({.content = std::string(kEndOfText), .id = *end_of_text, .special = true});
  }
  PreTokenizer pre_tokenizer;
  pre_tokenizer.add_split(UnicodeRegex(kGpt2Pattern), SplitBehavior::kIsolated, false);
  TokenDecoder decoder;
  decoder.add_byte_level();
  return std::make_unique<BpeTokenizer>(BpeTokenizerParts{
      .model = std::move(model),
      .added_tokens = std::move(added),
      .normalizer = {},
      .pre_tokenizer = std::move(pre_tokenizer),
      .decoder = std::move(decoder),
      .document_prefix = {},
      .document_suffix = {},
      .bos_id = end_of_text,
      .eos_id = end_of_text,
      .files = {{files->vocab.string(), "vocab.json"}, {files->merges.string(), "merges.txt"}},
      .fingerprint = tokenizer_fingerprint("gpt2", contents)});
}

}  // namespace narrowgauge::data
