#include "data/tokenizer.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <stdexcept>
#include <string_view>
#include <system_error>

#include "data/byte_tokenizer.h"
#include "data/gpt2_tokenizer.h"
#include "data/huggingface_tokenizer.h"
#include "data/sentencepiece_tokenizer.h"

namespace narrowgauge::data {
namespace {

constexpr std::array<std::string_view, 5> kKinds = {"bytes", "huggingface", "gpt2", "sentencepiece",
                                                    "none"};

// GPT-2's files, as OpenAI and as Hugging Face name them.
constexpr std::array<std::string_view, 4> kGpt2Names = {"encoder.json", "vocab.bpe", "vocab.json",
                                                        "merges.txt"};

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer(const TokenizerOptions& options) {
  if (std::find(kKinds.begin(), kKinds.end(), options.kind) == kKinds.end()) {
    throw std::invalid_argument(
        "expected tokenizer kind bytes, huggingface, gpt2, sentencepiece or none, got '" +
        options.kind + "'");
  }
  if (options.kind == "none") {
    return nullptr;
  }
  if (options.kind == "bytes") {
    return std::make_unique<ByteTokenizer>();
  }
  if (options.path.empty()) {
    throw std::invalid_argument("expected a path for tokenizer kind '" + options.kind +
                                "', got none; name its file or directory in tokenizer.path");
  }
  if (options.kind == "huggingface") {
    return load_huggingface_tokenizer(options.path);
  }
  if (options.kind == "gpt2") {
    return load_gpt2_tokenizer(options.path);
  }
  return load_sentencepiece_tokenizer(options.path);
}

TokenizerOptions guess_tokenizer(const std::string& path) {
  namespace fs = std::filesystem;
  if (path == "bytes" || path == "none") {
    return {path, ""};
  }
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) {
    const auto holds = [&](std::string_view name) { return fs::exists(fs::path(path) / name); };
    const bool is_gpt2 = std::any_of(kGpt2Names.begin(), kGpt2Names.end(), holds);
    return {holds("tokenizer.json")    ? "huggingface"
            : holds("tokenizer.model") ? "sentencepiece"
            : is_gpt2                  ? "gpt2"
                                       : "huggingface",
            path};
  }
  const auto ends = [&](std::string_view name) { return path.ends_with(name); };
  if (std::any_of(kGpt2Names.begin(), kGpt2Names.end(), ends)) {
    return {"gpt2", path};
  }
  return {path.ends_with(".model") ? "sentencepiece" : "huggingface", path};
}

}  // namespace narrowgauge::data
