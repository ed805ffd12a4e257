#include "trainer/calibration_text.h"

#include <algorithm>
#include <stdexcept>

#include "trainer/scored_text.h"
#include "trainer/usage_error.h"

namespace narrowgauge::trainer {
namespace {

constexpr int64_t kLongestDefaultWindow = 2048;

}  // namespace

std::vector<std::vector<int64_t>> calibration_windows(const CalibrationText& text,
                                                      const data::Tokenizer* tokenizer,
                                                      const nn::TransformerConfig& config) {
  if (text.files.empty()) {
    return {};
  }
  const int64_t seq_len =
      text.seq_len > 0 ? text.seq_len : std::min(config.max_seq_len, kLongestDefaultWindow);
  if (seq_len > config.max_seq_len) {
    throw UsageError("--seq-len: expected at most the model's " +
                     std::to_string(config.max_seq_len) + ", got " + std::to_string(seq_len));
  }
  std::vector<int64_t> stream;
  for (const ScoredDocument& document :
       read_scored_documents(text.files, tokenizer, config.vocab_size)) {
    stream.insert(stream.end(), document.tokens.begin(), document.tokens.end());
  }
  const auto available = static_cast<int64_t>(stream.size()) / seq_len;
  if (available == 0) {
    throw std::runtime_error("--calibration: expected at least " + std::to_string(seq_len) +
                             " tokens, got " + std::to_string(stream.size()) +
                             "; name more text or a smaller --seq-len");
  }
  const int64_t count = std::min(text.samples, available);
  std::vector<std::vector<int64_t>> windows;
  for (int64_t i = 0; i < count; ++i) {
    const auto begin = stream.begin() + available * i / count * seq_len;
    windows.emplace_back(begin, begin + seq_len);
  }
  return windows;
}

uint64_t fingerprint(const std::vector<std::vector<int64_t>>& windows) {
  uint64_t hash = 0xcbf29ce484222325ULL;  // FNV-1a
  for (const auto& window : windows) {
    for (const int64_t token : window) {
      hash = (hash ^ static_cast<uint64_t>(token)) * 0x100000001b3ULL;
    }
  }
  return hash;
}

}  // namespace narrowgauge::trainer
