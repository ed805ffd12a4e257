// The format, little-endian, versions 1 and 2:
//
//   offset        size            what
//   0             8               "NGTOKENS"
//   8             4               version
//   12            4               bytes a token, 2 or 4
//   16            8               number of tokens T
//   24            8               number of documents D
//   32            8               vocabulary size; every id is below it
//   40            16              fingerprint of sources, tokenizer and options
//   56            8               bytes of text that the tokens stand for
//   64            8               XXH3 of the tokens
//   72            8               XXH3 of bytes 0 to 71 and the document table
//   80            T * bytes       tokens, then zeros up to a multiple of 8
//   ...           D * 16          for each document: position after its last token, XXH3 of its ids
//
// In version 2 tokens have 4 bytes, and the highest bit marks one that is no target of the loss.
//
// The size of the file follows from the header, so a truncated one is found without reading it.
#include "data/token_cache.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <utility>

namespace narrowgauge::data {
namespace {

constexpr std::array<char, 8> kMagic = {'N', 'G', 'T', 'O', 'K', 'E', 'N', 'S'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kVersionWithIgnored = 2;
constexpr uint32_t kIgnoredBit = uint32_t{1} << 31;

uint64_t padded_to_8(uint64_t size) { return (size + 7) / 8 * 8; }

struct FreeState {
  void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
};

class StreamHash {
 public:
  StreamHash() : state_(XXH3_createState()) { reset(); }
  void reset() { XXH3_64bits_reset(state_.get()); }
  void update(const void* bytes, size_t size) { XXH3_64bits_update(state_.get(), bytes, size); }
  uint64_t digest() const { return XXH3_64bits_digest(state_.get()); }

 private:
  std::unique_ptr<XXH3_state_t, FreeState> state_;
};

}  // namespace

struct TokenCache::Header {
  std::array<char, 8> magic;
  uint32_t version;
  uint32_t token_bytes;
  uint64_t num_tokens;
  uint64_t num_documents;
  uint64_t vocab_size;
  CacheFingerprint fingerprint;
  uint64_t text_bytes;
  uint64_t tokens_hash;
  uint64_t hash;

  uint64_t table_offset() const { return sizeof(Header) + padded_to_8(num_tokens * token_bytes); }

  uint64_t expected_hash(std::span<const DocumentEnd> documents) const {
    StreamHash stream;
    stream.update(this, offsetof(Header, hash));
    stream.update(documents.data(), documents.size_bytes());
    return stream.digest();
  }
};

TokenCache::TokenCache(const std::string& path) : file_(path) {
  static_assert(sizeof(Header) == 80);
  const uint64_t size = file_.bytes().size();
  const auto reject = [&](const std::string& why) {
    throw std::runtime_error("'" + path + "' is no usable token cache: " + why);
  };
  if (size < sizeof(Header)) {
    reject("expected a header of 80 bytes, got a file of " + std::to_string(size));
  }
  const Header& header = this->header();
  if (header.magic != kMagic) reject("expected the magic NGTOKENS at byte 0");
  const bool has_ignored = header.version == kVersionWithIgnored;
  if (header.version != kVersion && !has_ignored) {
    reject("expected version 1 or 2, got " + std::to_string(header.version));
  }
  if (header.token_bytes != 4 && (header.token_bytes != 2 || has_ignored)) {
    reject("expected 2 or 4 bytes a token, got " + std::to_string(header.token_bytes));
  }
  // Bounded by the size first: a lying count must not overflow what is computed from it.
  const bool is_bounded = header.num_tokens <= size && header.num_documents <= size;
  const uint64_t expected =
      is_bounded ? header.table_offset() + header.num_documents * sizeof(DocumentEnd) : 0;
  if (expected != size) {
    reject("the header says " + std::to_string(header.num_tokens) + " tokens in " +
           std::to_string(header.num_documents) + " documents, which does not fit " +
           std::to_string(size) + " bytes; it is truncated or damaged");
  }
  documents_ = {reinterpret_cast<const DocumentEnd*>(file_.bytes().data() + header.table_offset()),
                header.num_documents};
  if (header.hash != header.expected_hash(documents_)) {
    reject("the checksum of header and document table does not fit them");
  }
  uint64_t begin = 0;
  for (const auto& document : documents_) {
    if (document.end <= begin) reject("the document table does not ascend");
    begin = document.end;
  }
  if (begin != header.num_tokens) reject("the document table does not end with the tokens");
}

const TokenCache::Header& TokenCache::header() const {
  return *reinterpret_cast<const Header*>(file_.bytes().data());
}

const std::byte* TokenCache::tokens() const { return file_.bytes().data() + sizeof(Header); }

int64_t TokenCache::num_tokens() const { return static_cast<int64_t>(header().num_tokens); }
int TokenCache::token_bytes() const { return static_cast<int>(header().token_bytes); }
int64_t TokenCache::vocab_size() const { return static_cast<int64_t>(header().vocab_size); }
uint64_t TokenCache::text_bytes() const { return header().text_bytes; }
CacheFingerprint TokenCache::fingerprint() const { return header().fingerprint; }

void TokenCache::read(int64_t begin, std::span<int64_t> out) const {
  widen_tokens(tokens() + begin * token_bytes(), token_bytes(), out);
  if (header().version == kVersionWithIgnored) {
    for (int64_t& id : out) id &= ~int64_t{kIgnoredBit};
  }
}

void TokenCache::read_ignored(int64_t begin, std::span<uint8_t> out) const {
  if (header().version != kVersionWithIgnored) return TokenStorage::read_ignored(begin, out);
  const auto* all = reinterpret_cast<const uint32_t*>(tokens());
  std::transform(all + begin, all + begin + out.size(), out.begin(),
                 [](uint32_t token) { return static_cast<uint8_t>(token >> 31); });
}

void TokenCache::verify_tokens() const {
  const uint64_t got = XXH3_64bits(tokens(), header().num_tokens * header().token_bytes);
  if (got != header().tokens_hash) {
    throw std::runtime_error("'" + name() +
                             "': the checksum of the tokens does not fit them; the file was "
                             "damaged after it was written: remove it, it will be made again");
  }
}

struct TokenCacheWriter::Hashes {
  StreamHash tokens;
  StreamHash document;
};

TokenCacheWriter::TokenCacheWriter(std::string path, const CacheFingerprint& fingerprint,
                                   int64_t vocab_size, bool has_ignored)
    : path_(std::move(path)),
      temporary_path_(path_ + ".tmp"),
      fingerprint_(fingerprint),
      vocab_size_(vocab_size),
      has_ignored_(has_ignored),
      token_bytes_(vocab_size <= 65536 && !has_ignored ? 2 : 4),
      file_(std::fopen(temporary_path_.c_str(), "wbe")),
      hashes_(std::make_unique<Hashes>()) {
  if (file_ == nullptr) {
    throw std::runtime_error(
        "cannot create the token cache '" + temporary_path_ + "': " + std::strerror(errno) +
        "; set data.cache_dir (--cache-dir) to a directory that can be written");
  }
  const TokenCache::Header blank{};  // finish fills it in
  write(&blank, sizeof blank);
}

TokenCacheWriter::~TokenCacheWriter() {
  if (file_ != nullptr) std::fclose(file_);
  if (!is_finished_) ::unlink(temporary_path_.c_str());
}

void TokenCacheWriter::append(std::span<const int32_t> ids, uint64_t text_bytes,
                              std::span<const uint8_t> ignored) {
  if (!ignored.empty() && (!has_ignored_ || ignored.size() != ids.size())) {
    throw std::logic_error("expected marks for a cache that has them, one for each id");
  }
  narrow_.resize(ids.size() * token_bytes_);
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size_) {
      throw std::out_of_range("expected ids below the tokenizer's vocabulary of " +
                              std::to_string(vocab_size_) + ", got " + std::to_string(ids[i]) +
                              " as token " + std::to_string(num_tokens_ + i));
    }
    const bool is_ignored = !ignored.empty() && ignored[i] != 0;
    const uint32_t token = static_cast<uint32_t>(ids[i]) | (is_ignored ? kIgnoredBit : 0);
    // Little-endian: the first two bytes are the value when it fits them.
    std::memcpy(narrow_.data() + i * token_bytes_, &token, token_bytes_);
  }
  write(narrow_.data(), narrow_.size());
  hashes_->tokens.update(narrow_.data(), narrow_.size());
  hashes_->document.update(ids.data(), ids.size_bytes());
  num_tokens_ += static_cast<int64_t>(ids.size());
  text_bytes_ += text_bytes;
}

void TokenCacheWriter::end_document() {
  const uint64_t begin = documents_.empty() ? 0 : documents_.back().end;
  if (static_cast<uint64_t>(num_tokens_) == begin) return;
  documents_.push_back({static_cast<uint64_t>(num_tokens_), hashes_->document.digest()});
  hashes_->document.reset();
}

void TokenCacheWriter::finish() {
  const std::array<char, 8> zeros{};
  const uint64_t token_bytes = static_cast<uint64_t>(num_tokens_) * token_bytes_;
  write(zeros.data(), padded_to_8(token_bytes) - token_bytes);
  write(documents_.data(), documents_.size() * sizeof(DocumentEnd));

  TokenCache::Header header{kMagic,
                            has_ignored_ ? kVersionWithIgnored : kVersion,
                            static_cast<uint32_t>(token_bytes_),
                            static_cast<uint64_t>(num_tokens_),
                            documents_.size(),
                            static_cast<uint64_t>(vocab_size_),
                            fingerprint_,
                            text_bytes_,
                            hashes_->tokens.digest(),
                            0};
  header.hash = header.expected_hash(documents_);
  const auto require = [&](bool ok) {
    if (!ok) {
      throw std::runtime_error("cannot complete the token cache '" + path_ +
                               "': " + std::strerror(errno));
    }
  };
  require(std::fseek(file_, 0, SEEK_SET) == 0);
  write(&header, sizeof header);
  require(std::fflush(file_) == 0 && ::fsync(::fileno(file_)) == 0);
  require(std::fclose(std::exchange(file_, nullptr)) == 0);
  require(::rename(temporary_path_.c_str(), path_.c_str()) == 0);
  is_finished_ = true;
  // The rename itself must outlive a power cut as well.
  const std::string directory = std::filesystem::path(path_).parent_path().string();
  const int descriptor = ::open(directory.empty() ? "." : directory.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor >= 0) {
    ::fsync(descriptor);
    ::close(descriptor);
  }
}

void TokenCacheWriter::write(const void* bytes, size_t size) {
  if (size > 0 && std::fwrite(bytes, 1, size, file_) != size) {
    throw std::runtime_error(
        "cannot write the token cache '" + temporary_path_ + "': " + std::strerror(errno) +
        " after " + std::to_string(num_tokens_) +
        " tokens; free space or set data.cache_dir (--cache-dir) to another place");
  }
}

}  // namespace narrowgauge::data
