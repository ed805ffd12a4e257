#include "data/tokenizer.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "data/byte_tokenizer.h"
#include "data/gpt2_tokenizer.h"
#include "data/huggingface_tokenizer.h"
#include "data/sentencepiece_tokenizer.h"

namespace narrowgauge::data {
namespace {

constexpr std::array<std::string_view, 5> kKinds = {"bytes", "huggingface", "gpt2", "sentencepiece",
                                                    "none"};

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substitution = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substitution});
    }
  }
  return row.back();
}

[[noreturn]] void throw_unknown_kind(const std::string& kind) {
  const auto nearest = std::min_element(
      kKinds.begin(), kKinds.end(), [&](std::string_view left, std::string_view right) {
        return edit_distance(kind, left) < edit_distance(kind, right);
      });
  throw std::invalid_argument(
      "expected tokenizer kind bytes, huggingface, gpt2, sentencepiece or none, got '" + kind +
      "'; did you mean '" + std::string(*nearest) + "'?");
}

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer(const TokenizerOptions& options) {
  if (std::find(kKinds.begin(), kKinds.end(), options.kind) == kKinds.end()) {
    throw_unknown_kind(options.kind);
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

}  // namespace narrowgauge::data
