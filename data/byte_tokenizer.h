#pragma once

#include "data/tokenizer.h"

namespace narrowgauge::data {

// Token ids are byte values: nothing to load, any input is valid, decode(encode(x)) == x.
class ByteTokenizer : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text) const override;
  std::string decode(std::span<const int32_t> ids) const override;
  int64_t vocab_size() const override { return 256; }
  std::string fingerprint() const override { return "bytes"; }
};

}  // namespace narrowgauge::data
