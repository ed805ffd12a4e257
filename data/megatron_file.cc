// NAME.idx, little-endian, without padding (Megatron-LM,
// megatron/core/datasets/indexed_dataset.py):
//
//   offset      size   what
//   0           9      "MMIDIDX", two zeros
//   9           8      version, 1
//   17          1      type of the ids: 8 is uint16, 4 is int32, others are refused
//   18          8      number of sequences S
//   26          8      number of document indices I
//   34          S * 4  int32: ids of each sequence
//   ...         S * 8  int64: byte of NAME.bin where each begins
//   ...         I * 8  int64: index of the first sequence of each document, then S
//
// NAME.bin is the ids of all sequences, one after another.
#include "data/megatron_file.h"

#include <xxhash.h>

#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

#include "data/mapped_file.h"

namespace narrowgauge::data {
namespace {

constexpr std::string_view kMagic("MMIDIDX\0\0", 9);
constexpr size_t kHeaderBytes = 34;
constexpr uint8_t kInt32 = 4;
constexpr uint8_t kUint16 = 8;

template <typename T>
T load(std::span<const std::byte> bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

// An index file, checked against the size of its NAME.bin.
class Index {
 public:
  Index(const std::string& path, uint64_t bin_bytes) : file_(path) {
    const auto bytes = file_.bytes();
    if (bytes.size() < kHeaderBytes ||
        std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
      reject("expected the header of a Megatron-LM index (MMIDIDX) of 34 bytes");
    }
    if (const auto version = load<uint64_t>(bytes, 9); version != 1) {
      reject("expected version 1, got " + std::to_string(version));
    }
    const auto type = load<uint8_t>(bytes, 17);
    if (type != kUint16 && type != kInt32) {
      reject("expected ids of type 8 (uint16) or 4 (int32), got type " + std::to_string(type) +
             "; write the data again with one of these");
    }
    token_bytes_ = type == kUint16 ? 2 : 4;
    read_sizes();
    read_documents(bin_bytes);
  }

  int token_bytes() const { return token_bytes_; }
  std::vector<DocumentEnd> take_documents() { return std::move(documents_); }

 private:
  [[noreturn]] void reject(const std::string& why) const {
    throw std::runtime_error("'" + file_.path() + "': " + why);
  }

  void read_sizes() {
    num_sequences_ = load<uint64_t>(file_.bytes(), 18);
    num_indices_ = load<uint64_t>(file_.bytes(), 26);
    const uint64_t size = file_.bytes().size();
    // Bounded by the size first: a lying count must not overflow what is computed from it.
    const bool is_possible = num_sequences_ <= size && num_indices_ <= size;
    if (!is_possible || kHeaderBytes + num_sequences_ * 12 + num_indices_ * 8 != size) {
      reject("the header says " + std::to_string(num_sequences_) + " sequences and " +
             std::to_string(num_indices_) + " document indices, which do not fit " +
             std::to_string(size) + " bytes; it is truncated, damaged or has modes");
    }
  }

  size_t pointer_at(uint64_t sequence) const {
    return kHeaderBytes + num_sequences_ * 4 + sequence * 8;
  }

  void read_documents(uint64_t bin_bytes) {
    const auto bytes = file_.bytes();
    const size_t indices = pointer_at(num_sequences_);
    uint64_t sequence = 0;
    uint64_t num_tokens = 0;
    for (uint64_t i = 0; i < num_indices_; ++i) {
      const auto first = load<int64_t>(bytes, indices + i * 8);
      if (first < 0 || static_cast<uint64_t>(first) < sequence ||
          static_cast<uint64_t>(first) > num_sequences_ || (i == 0 && first != 0)) {
        reject("expected document indices that ascend from 0 to " + std::to_string(num_sequences_) +
               ", got " + std::to_string(first) + " as number " + std::to_string(i));
      }
      const uint64_t begin = num_tokens;
      for (; sequence < static_cast<uint64_t>(first); ++sequence) {
        num_tokens += length_of(sequence, num_tokens);
      }
      if (num_tokens > begin) documents_.push_back({num_tokens, i});
    }
    if (sequence != num_sequences_) {
      reject("expected " + std::to_string(num_sequences_) + " as the last document index, got " +
             std::to_string(sequence));
    }
    if (num_tokens * token_bytes_ != bin_bytes) {
      reject("it describes " + std::to_string(num_tokens) + " ids, that is " +
             std::to_string(num_tokens * token_bytes_) + " bytes, but its .bin has " +
             std::to_string(bin_bytes) + "; one of them is truncated or of other data");
    }
  }

  uint64_t length_of(uint64_t sequence, uint64_t num_tokens_before) const {
    const auto length = load<int32_t>(file_.bytes(), kHeaderBytes + sequence * 4);
    const auto pointer = load<int64_t>(file_.bytes(), pointer_at(sequence));
    const uint64_t expected = num_tokens_before * token_bytes_;
    if (length < 0 || pointer < 0 || static_cast<uint64_t>(pointer) != expected) {
      reject("expected sequence " + std::to_string(sequence) + " at byte " +
             std::to_string(expected) + " with a length of at least 0, got byte " +
             std::to_string(pointer) + " and length " + std::to_string(length));
    }
    return static_cast<uint64_t>(length);
  }

  MappedFile file_;
  int token_bytes_ = 0;
  uint64_t num_sequences_ = 0;
  uint64_t num_indices_ = 0;
  std::vector<DocumentEnd> documents_;
};

class MegatronFile : public TokenStorage {
 public:
  MegatronFile(const std::string& bin_path, int64_t vocab_size, DocumentHash hash)
      : file_(bin_path), vocab_size_(vocab_size) {
    Index index(megatron_index_path(bin_path), file_.bytes().size());
    token_bytes_ = index.token_bytes();
    documents_ = index.take_documents();
    if (documents_.empty()) {
      throw std::runtime_error("'" + bin_path + "': expected token ids, got none");
    }
    if (hash == DocumentHash::kContent) hash_documents();
  }

  int64_t num_tokens() const override { return static_cast<int64_t>(documents_.back().end); }
  std::span<const DocumentEnd> documents() const override { return documents_; }
  const std::string& name() const override { return file_.path(); }

  void read(int64_t begin, std::span<int64_t> out) const override {
    widen_tokens(file_.bytes().data() + begin * token_bytes_, token_bytes_, out);
    const int64_t foreign = vocab_size_ > 0 ? find_foreign_id(out, vocab_size_) : -1;
    if (foreign >= 0) {
      throw std::runtime_error(
          "'" + name() + "': expected ids below vocab_size " + std::to_string(vocab_size_) +
          ", got " + std::to_string(out[foreign]) + " at token " + std::to_string(begin + foreign) +
          "; the file was made with a larger vocabulary");
    }
  }

 private:
  void hash_documents() {
    uint64_t begin = 0;
    for (DocumentEnd& document : documents_) {
      document.content_hash = XXH3_64bits(file_.bytes().data() + begin * token_bytes_,
                                          (document.end - begin) * token_bytes_);
      begin = document.end;
    }
  }

  MappedFile file_;
  int64_t vocab_size_;
  int token_bytes_ = 0;
  std::vector<DocumentEnd> documents_;
};

}  // namespace

std::unique_ptr<TokenStorage> open_megatron_file(const std::string& bin_path, int64_t vocab_size,
                                                 DocumentHash hash) {
  return std::make_unique<MegatronFile>(bin_path, vocab_size, hash);
}

std::string megatron_index_path(const std::string& bin_path) {
  return bin_path.substr(0, bin_path.rfind('.')) + ".idx";
}

}  // namespace narrowgauge::data
