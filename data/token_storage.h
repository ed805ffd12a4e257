#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace narrowgauge::data {

// Where a document ends in a stream of tokens, and what stands in it. Documents follow one another
// without gaps, so each begins where the one before it ends.
struct DocumentEnd {
  uint64_t end = 0;           // position after its last token
  uint64_t content_hash = 0;  // equal for equal tokens: what the held-out split is drawn by
};

// A stream of token ids that does not change. Any number of threads may read it.
class TokenStorage {
 public:
  virtual ~TokenStorage() = default;

  virtual int64_t num_tokens() const = 0;

  // Copies tokens [begin, begin + out.size()). REQUIRES: they lie within the stream.
  virtual void read(int64_t begin, std::span<int64_t> out) const = 0;

  // For each of those tokens 1 if it is no target of the loss, as what others say in a chat, else
  // 0. REQUIRES: as read.
  virtual void read_ignored(int64_t begin, std::span<uint8_t> out) const;

  virtual std::span<const DocumentEnd> documents() const = 0;

  // The file, for messages.
  virtual const std::string& name() const = 0;
};

// Copies ids of `token_bytes` (2 or 4, little-endian) bytes each.
void widen_tokens(const std::byte* tokens, int token_bytes, std::span<int64_t> out);

// Index of the first id that is not in [0, vocab_size), or -1.
int64_t find_foreign_id(std::span<const int64_t> ids, int64_t vocab_size);

}  // namespace narrowgauge::data
