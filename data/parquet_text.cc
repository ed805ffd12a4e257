#include "data/parquet_text.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "data/run_length.h"
#include "data/thrift_reader.h"

namespace narrowgauge::data {
namespace {

using Type = ThriftReader::Type;

// parquet.thrift, PageType and Encoding.
enum PageType : int64_t { kDataPage = 0, kIndexPage = 1, kDictionaryPage = 2, kDataPageV2 = 3 };
enum Encoding : int64_t { kPlain = 0, kPlainDictionary = 2, kRleDictionary = 8 };

// Writers make pages of about a megabyte; a lying header must not take all memory.
constexpr int64_t kMaxPageBytes = int64_t{1} << 28;
constexpr int64_t kMaxPageValues = int64_t{1} << 24;

uint32_t take_size(std::string_view& bytes) {
  uint32_t size = 0;
  if (bytes.size() < sizeof size) throw std::runtime_error("damaged page: it ends too early");
  std::memcpy(&size, bytes.data(), sizeof size);
  bytes.remove_prefix(sizeof size);
  if (size > bytes.size()) throw std::runtime_error("damaged page: a value ends behind it");
  return size;
}

std::string_view take(std::string_view& bytes) {
  const uint32_t size = take_size(bytes);
  const std::string_view taken = bytes.substr(0, size);
  bytes.remove_prefix(size);
  return taken;
}

}  // namespace

struct ParquetText::Page {
  int64_t type = -1;
  int64_t size = 0;             // decompressed
  int64_t compressed_size = 0;  // in the file
  int64_t num_values = 0;
  int64_t encoding = -1;
  // Of version 2, in front of what is compressed:
  int64_t definition_bytes = 0;
  int64_t repetition_bytes = 0;
  bool is_compressed = true;
  std::span<const std::byte> bytes = {};

  // Returns the size of the header.
  size_t read(std::span<const std::byte> from) {
    ThriftReader in(from);
    in.read_struct([&](int64_t id, Type field) {
      if (field == Type::kI32 && id >= 1 && id <= 3) {
        (id == 1 ? type : id == 2 ? size : compressed_size) = in.read_zigzag();
        return true;
      }
      if (field != Type::kStruct || (id != 5 && id != 7 && id != 8)) return false;
      read_details(in, /*is_v2=*/id == 8);
      return true;
    });
    const auto left = static_cast<int64_t>(from.size() - in.position());
    if (size < 0 || size > kMaxPageBytes || compressed_size < 0 || compressed_size > left ||
        num_values < 0 || num_values > kMaxPageValues || definition_bytes < 0 ||
        repetition_bytes < 0 || definition_bytes > compressed_size - repetition_bytes ||
        definition_bytes > size - repetition_bytes) {
      throw std::runtime_error("damaged page: its header does not fit");
    }
    bytes = from.subspan(in.position(), compressed_size);
    return in.position() + compressed_size;
  }

  void read_details(ThriftReader& in, bool is_v2) {
    in.read_struct([&](int64_t id, Type field) {
      if (is_v2 && id == 7) return is_compressed = field == Type::kTrue, true;
      if (field != Type::kI32) return false;
      if (id == 1) return num_values = in.read_zigzag(), true;
      if (id == (is_v2 ? 4 : 2)) return encoding = in.read_zigzag(), true;
      if (is_v2 && id == 5) return definition_bytes = in.read_zigzag(), true;
      if (is_v2 && id == 6) return repetition_bytes = in.read_zigzag(), true;
      return false;
    });
  }
};

ParquetText::ParquetText(const std::string& path, const std::string& column)
    : file_(path), column_(find_parquet_column(file_, column)) {
  if (!column_.chunks.empty()) at_ = column_.chunks[0].begin;
}

bool ParquetText::next(std::string_view& text) {
  try {
    while (!next_value(text)) {
      if (!open_next_page()) return false;
    }
    return true;
  } catch (const std::runtime_error& error) {
    throw std::runtime_error("'" + file_.path() + "', behind row " + std::to_string(row_) + ": " +
                             error.what());
  }
}

bool ParquetText::next_value(std::string_view& text) {
  while (next_level_ < levels_.size()) {
    ++row_;
    if (levels_[next_level_++] == 0) continue;
    if (!has_indices_) {
      text = take(values_);
      return true;
    }
    if (next_index_ == indices_.size() || indices_[next_index_] >= dictionary_.size()) {
      throw std::runtime_error("damaged page: an entry that its dictionary has not");
    }
    text = dictionary_[indices_[next_index_++]];
    return true;
  }
  return false;
}

bool ParquetText::open_next_page() {
  while (chunk_ < column_.chunks.size() && chunk_values_ >= column_.chunks[chunk_].num_values) {
    if (++chunk_ < column_.chunks.size()) at_ = column_.chunks[chunk_].begin;
    chunk_values_ = 0;
    dictionary_.clear();
  }
  if (chunk_ == column_.chunks.size()) return false;
  Page page;
  const ParquetChunk& chunk = column_.chunks[chunk_];
  file_.release(page_begin_, at_);
  page_begin_ = at_;
  at_ += page.read(file_.bytes().subspan(at_, chunk.end - at_));
  if (page.type == kDictionaryPage) {
    open_dictionary(page);
  } else if (page.type == kDataPage || page.type == kDataPageV2) {
    if (page.num_values > chunk.num_values - chunk_values_) {
      throw std::runtime_error("damaged page: more values than its row group has");
    }
    chunk_values_ += page.num_values;
    open_data(page);
  }
  return true;  // an index page has nothing for us
}

void ParquetText::open_dictionary(const Page& page) {
  dictionary_page_ = decompress(column_.chunks[chunk_].compression, page.bytes, page.size);
  dictionary_.clear();
  std::string_view rest = dictionary_page_;
  // A value takes its size at least.
  if (page.num_values > static_cast<int64_t>(rest.size() / 4)) {
    throw std::runtime_error("damaged page: a dictionary shorter than it says");
  }
  for (int64_t i = 0; i < page.num_values; ++i) dictionary_.push_back(take(rest));
}

void ParquetText::open_data(const Page& page) {
  const int64_t level_bytes = page.definition_bytes + page.repetition_bytes;
  const auto body = page.bytes.subspan(level_bytes);
  const bool is_compressed = page.is_compressed && page.size > level_bytes;
  page_ = decompress(is_compressed ? column_.chunks[chunk_].compression : Compression::kNone, body,
                     page.size - level_bytes);
  values_ = page_;
  levels_.assign(page.num_values, 1);
  next_level_ = 0;
  if (column_.is_optional) {
    const std::string_view levels =
        page.type == kDataPageV2
            ? std::string_view(
                  reinterpret_cast<const char*>(page.bytes.data()) + page.repetition_bytes,
                  page.definition_bytes)
            : take(values_);
    levels_ = decode_run_lengths(levels, 1, page.num_values);
  }
  has_indices_ = page.encoding == kPlainDictionary || page.encoding == kRleDictionary;
  if (!has_indices_ && page.encoding != kPlain) {
    throw std::runtime_error("expected values that are plain or in a dictionary, got encoding " +
                             std::to_string(page.encoding) + "; write the file again without it");
  }
  if (has_indices_) decode_indices();
}

void ParquetText::decode_indices() {
  next_index_ = 0;
  const auto count = static_cast<int64_t>(std::count(levels_.begin(), levels_.end(), 1u));
  if (count == 0) return indices_.clear();
  if (values_.empty()) throw std::runtime_error("damaged page: it ends too early");
  const int bit_width = static_cast<unsigned char>(values_.front());
  indices_ = decode_run_lengths(values_.substr(1), bit_width, count);
}

}  // namespace narrowgauge::data
