#include "data/random_tokens.h"

#include <stdexcept>
#include <string>

#include "data/mix64.h"

namespace narrowgauge::data {
namespace {

class RandomTokens : public TokenStorage {
 public:
  RandomTokens(int64_t vocab_size, uint64_t seed, int64_t num_tokens)
      : vocab_size_(static_cast<uint64_t>(vocab_size)),
        seed_(seed),
        document_{static_cast<uint64_t>(num_tokens), seed} {}

  int64_t num_tokens() const override { return static_cast<int64_t>(document_.end); }
  std::span<const DocumentEnd> documents() const override { return {&document_, 1}; }
  const std::string& name() const override { return name_; }

  void read(int64_t begin, std::span<int64_t> out) const override {
    for (size_t i = 0; i < out.size(); ++i) {
      const uint64_t bits = mix64(seed_, static_cast<uint64_t>(begin) + i);
      out[i] = static_cast<int64_t>(scale_to(bits, vocab_size_));
    }
  }

 private:
  uint64_t vocab_size_;
  uint64_t seed_;
  DocumentEnd document_;
  std::string name_ = "random_tokens";
};

}  // namespace

std::unique_ptr<TokenStorage> make_random_tokens(int64_t vocab_size, uint64_t seed,
                                                 int64_t num_tokens) {
  if (vocab_size < 1 || num_tokens < 1) {
    throw std::invalid_argument("expected a vocabulary and tokens for random_tokens, got " +
                                std::to_string(vocab_size) + " and " + std::to_string(num_tokens) +
                                "; set model.vocab_size");
  }
  return std::make_unique<RandomTokens>(vocab_size, seed, num_tokens);
}

}  // namespace narrowgauge::data
