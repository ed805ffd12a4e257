#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace narrowgauge::data {

struct TokenizerOptions {
  std::string kind = "bytes";  // bytes | huggingface | gpt2 | sentencepiece | none
  std::string path;            // a file, or the directory that holds it; unused by bytes and none
};

// A file that a model directory must carry, and its name there.
struct TokenizerFile {
  std::string path;
  std::string exported_name;  // the name that transformers looks for, e.g. tokenizer.json
};

// Text to token ids and back, with the ids of the reference library of its kind. Every method is
// const and thread-safe.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // The ids of `text`, nothing added. Added tokens written out in the text ("<|endoftext|>") become
  // their id where the reference does that. Throws std::invalid_argument with the byte offset when
  // the text is not valid UTF-8 (kind bytes takes anything).
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;

  // The text of `ids`, special tokens included. Bytes that are not UTF-8 become U+FFFD, one for
  // each maximal ill-formed part, except with kind bytes, which gives the bytes back. Ids outside
  // the vocabulary, which a model with a padded vocabulary may produce, stand for nothing.
  virtual std::string decode(std::span<const int32_t> ids) const = 0;

  // 1 + the largest id that encode can produce.
  virtual int64_t vocab_size() const = 0;

  // The tokens that begin and end a document, where the tokenizer's files declare them.
  virtual std::optional<int32_t> bos_id() const { return std::nullopt; }
  virtual std::optional<int32_t> eos_id() const { return std::nullopt; }

  // encode with what the tokenizer's own template puts before and after a document.
  virtual std::vector<int32_t> encode_document(std::string_view text) const { return encode(text); }

  // The files that an exported model directory must carry; `files` gives their paths alone.
  virtual std::vector<TokenizerFile> exported_files() const { return {}; }
  std::vector<std::string> files() const {
    std::vector<std::string> paths;
    for (TokenizerFile& file : exported_files()) {
      paths.push_back(std::move(file.path));
    }
    return paths;
  }

  // Changes whenever ids could change; keys caches of token ids.
  virtual std::string fingerprint() const = 0;
};

// Null for kind none, whose data are token ids already. Throws std::invalid_argument for an unknown
// kind, std::runtime_error for a missing, malformed or unsupported file.
std::unique_ptr<Tokenizer> load_tokenizer(const TokenizerOptions& options);

// The kind of the tokenizer that a command line names, and its path: "bytes" and "none" are the
// kinds without one; a .model file is sentencepiece; encoder.json and vocab.json (a prefix
// allowed), vocab.bpe and merges.txt are gpt2; a directory is what it holds, tokenizer.json before
// tokenizer.model before GPT-2's files. Anything else is huggingface, whose loader says what it
// misses. Looks at names alone; throws nothing about a path that does not exist.
TokenizerOptions guess_tokenizer(const std::string& path);

}  // namespace narrowgauge::data
