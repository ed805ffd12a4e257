#include "data/token_file.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <vector>

#include "data/mapped_file.h"

namespace narrowgauge::data {
namespace {

constexpr size_t kHeaderBytes = 1024;
constexpr int64_t kTokensCheckedAtOnce = int64_t{1} << 16;
constexpr int64_t kTokensCheckedAtOpen = int64_t{1} << 24;
// Bytes at the beginning that stand for the content of the file: it may be larger than memory.
constexpr size_t kHashedBytes = size_t{1} << 20;

struct LlmcFormat {
  int32_t magic;
  int32_t version;
  int token_bytes;
};
constexpr std::array<LlmcFormat, 2> kLlmcFormats = {{{20240520, 1, 2}, {20240801, 7, 4}}};

struct Layout {
  size_t begin = 0;  // offset of the first id
  int token_bytes = 2;
  int64_t num_tokens = 0;
};

Layout llmc_layout(const MappedFile& file, const LlmcFormat& format) {
  std::array<int32_t, 3> header{};  // magic, version, number of ids
  const size_t size = file.bytes().size();
  if (size < kHeaderBytes) {
    throw std::runtime_error("'" + file.path() + "': expected an llm.c header of 1024 bytes, got " +
                             std::to_string(size) + "; the file is truncated");
  }
  std::memcpy(header.data(), file.bytes().data(), sizeof header);
  if (header[1] != format.version) {
    throw std::runtime_error("'" + file.path() + "': expected version " +
                             std::to_string(format.version) + " after the llm.c magic " +
                             std::to_string(format.magic) + ", got " + std::to_string(header[1]));
  }
  // The count is an int32; the size decides nothing that the header does not say as well.
  const uint64_t expected =
      kHeaderBytes + static_cast<uint64_t>(std::max(header[2], 0)) * format.token_bytes;
  if (header[2] < 0 || expected != size) {
    throw std::runtime_error("'" + file.path() + "': the llm.c header says " +
                             std::to_string(header[2]) + " tokens, that is " +
                             std::to_string(expected) + " bytes, but the file has " +
                             std::to_string(size) + "; it is truncated or damaged");
  }
  return {kHeaderBytes, format.token_bytes, header[2]};
}

Layout layout_of(const MappedFile& file) {
  const size_t size = file.bytes().size();
  int32_t magic = 0;
  if (size >= sizeof magic) std::memcpy(&magic, file.bytes().data(), sizeof magic);
  for (const auto& format : kLlmcFormats) {
    if (magic == format.magic) return llmc_layout(file, format);
  }
  if (size % 2 != 0) {
    throw std::runtime_error("'" + file.path() +
                             "': expected uint16 ids (nanoGPT) or an llm.c header, got " +
                             std::to_string(size) + " bytes, an odd number, and no header");
  }
  return {0, 2, static_cast<int64_t>(size / 2)};
}

class TokenFile : public TokenStorage {
 public:
  TokenFile(const std::string& path, int64_t vocab_size)
      : file_(path), layout_(layout_of(file_)), vocab_size_(vocab_size) {
    if (layout_.num_tokens == 0) {
      throw std::runtime_error("'" + path + "': expected token ids, got none; the file is empty");
    }
    const auto bytes = file_.bytes().subspan(layout_.begin);
    document_ = {static_cast<uint64_t>(layout_.num_tokens),
                 XXH3_64bits(bytes.data(), std::min(bytes.size(), kHashedBytes))};
    std::vector<int64_t> ids(kTokensCheckedAtOnce);
    const int64_t checked = std::min(layout_.num_tokens, kTokensCheckedAtOpen);
    for (int64_t begin = 0; begin < checked; begin += kTokensCheckedAtOnce) {
      ids.resize(std::min(kTokensCheckedAtOnce, checked - begin));
      read(begin, ids);
    }
  }

  int64_t num_tokens() const override { return layout_.num_tokens; }
  const std::string& name() const override { return file_.path(); }

  std::span<const DocumentEnd> documents() const override { return {&document_, 1}; }

  void read(int64_t begin, std::span<int64_t> out) const override {
    widen_tokens(file_.bytes().data() + layout_.begin + begin * layout_.token_bytes,
                 layout_.token_bytes, out);
    const int64_t foreign = vocab_size_ > 0 ? find_foreign_id(out, vocab_size_) : -1;
    if (foreign >= 0) {
      throw std::runtime_error(
          "'" + name() + "': expected ids below vocab_size " + std::to_string(vocab_size_) +
          ", got " + std::to_string(out[foreign]) + " at token " + std::to_string(begin + foreign) +
          "; the file was made with a larger vocabulary, or is not a file of "
          "uint16 ids");
    }
  }

 private:
  MappedFile file_;
  Layout layout_;
  int64_t vocab_size_;
  DocumentEnd document_;
};

}  // namespace

std::unique_ptr<TokenStorage> open_token_file(const std::string& path, int64_t vocab_size,
                                              DocumentHash hash) {
  if (std::filesystem::exists(megatron_index_path(path))) {
    return open_megatron_file(path, vocab_size, hash);
  }
  return std::make_unique<TokenFile>(path, vocab_size);
}

}  // namespace narrowgauge::data
