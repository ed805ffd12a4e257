#include "data/text_source.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "data/utf8.h"

namespace narrowgauge::data {
namespace {

constexpr size_t kReadBytes = size_t{1} << 20;

bool holds_lines(const std::string& path) {
  return path.ends_with(".jsonl") || path.ends_with(".ndjson");
}

bool is_blank(std::string_view line) {
  return line.find_first_not_of(" \t\r") == std::string_view::npos;
}

std::string place(const Record& record, size_t column) {
  return record.path + ":" + std::to_string(record.line) + ":" + std::to_string(column);
}

// Replaces what is not UTF-8, or says where it is.
void make_utf8(Record& record, bool replace) {
  const size_t bad = find_invalid_utf8(record.bytes);
  if (bad == std::string::npos) return;
  if (replace) {
    record.bytes = replace_invalid_utf8(record.bytes);
    return;
  }
  constexpr std::string_view kDigits = "0123456789abcdef";
  const auto byte = static_cast<unsigned char>(record.bytes[bad]);
  throw std::runtime_error(
      record.path + ": expected UTF-8, got byte 0x" + kDigits[byte >> 4] + kDigits[byte & 15] +
      " at byte offset " + std::to_string(record.offset + bad) +
      (record.line > 0 ? " (line " + std::to_string(record.line) + ")" : "") +
      "; convert the file, or set data.invalid_utf8 (--invalid-utf8) to replace");
}

// nlohmann writes "[json.exception.parse_error.101] parse error at line 1, column 7: reason".
std::string reason_of(const nlohmann::json::parse_error& error) {
  const std::string_view what = error.what();
  const size_t colon = what.find(": ");
  return std::string(colon == std::string_view::npos ? what : what.substr(colon + 2));
}

// Copies of what is nested deeper would take more stack than a thread has.
constexpr int kMaxNesting = 100;

template <typename Json>
Json object_of_line(const Record& record) {
  const auto check_depth = [&](int depth, auto, const Json&) {
    if (depth <= kMaxNesting) return true;
    throw std::runtime_error(place(record, 1) + ": expected JSON of at most 100 levels");
  };
  Json object;
  try {
    object = Json::parse(record.bytes, check_depth);
  } catch (const nlohmann::json::parse_error& error) {
    throw std::runtime_error(place(record, error.byte) +
                             ": expected one JSON object a line: " + reason_of(error));
  }
  if (!object.is_object()) {
    throw std::runtime_error(place(record, 1) + ": expected a JSON object, got " +
                             object.type_name());
  }
  return object;
}

std::string text_of_line(const Record& record, const std::string& field) {
  auto object = object_of_line<nlohmann::json>(record);
  const auto found = object.find(field);
  if (found == object.end()) {
    std::string fields;
    for (const auto& [name, value] : object.items()) fields += (fields.empty() ? "" : ", ") + name;
    throw std::runtime_error(place(record, 1) + ": expected the field '" + field +
                             "', got an object with " +
                             (fields.empty() ? "no field" : "'" + fields + "'") +
                             "; set data.text_field (--field) to the field that holds the text");
  }
  if (!found->is_string()) {
    throw std::runtime_error(place(record, 1) + ": expected a string in the field '" + field +
                             "', got " + found->type_name() +
                             "; set data.text_field (--field) to the field that holds the text");
  }
  return std::move(found->get_ref<std::string&>());
}

}  // namespace

TextSource::TextSource(std::vector<SourceFile> files, TextOptions options)
    : files_(std::move(files)), options_(std::move(options)) {
  if (options_.piece_bytes > 0 && options_.piece_bytes < 4) {
    throw std::invalid_argument("expected piece_bytes of 0 or at least 4 (one character), got " +
                                std::to_string(options_.piece_bytes));
  }
  for (const auto& file : files_) total_bytes_ += file.size_bytes;
}

std::optional<Record> TextSource::next() {
  while (file_ || table_ || open_next_file()) {
    if (table_) {
      if (auto record = next_row()) return record;
      table_.reset();
      continue;
    }
    if (!has_lines_) return next_piece();
    if (auto record = next_line()) return record;
    file_.reset();
  }
  return std::nullopt;
}

std::string TextSource::decode(Record record) const {
  make_utf8(record, options_.replace_invalid_utf8);
  return record.line > 0 ? text_of_line(record, options_.text_field) : std::move(record.bytes);
}

nlohmann::ordered_json TextSource::decode_object(Record record) const {
  if (record.line == 0) {
    throw std::runtime_error(record.path +
                             ": expected a .jsonl file of messages with data.chat_template, got "
                             "another; name it in a run without one");
  }
  make_utf8(record, options_.replace_invalid_utf8);
  return object_of_line<nlohmann::ordered_json>(record);
}

bool TextSource::open_next_file() {
  while (num_opened_ < files_.size()) {
    const SourceFile& file = files_[num_opened_++];
    if (file.size_bytes == 0) {
      ++num_empty_files_;
      continue;
    }
    if (file.path.ends_with(".parquet")) {
      table_ = std::make_unique<ParquetText>(file.path, options_.text_field);
      file_bytes_read_ = 0;
      return true;
    }
    file_.reset(std::fopen(file.path.c_str(), "rb"));
    if (!file_) {
      throw std::runtime_error("expected a readable file, got '" + file.path +
                               "': " + std::strerror(errno));
    }
    has_lines_ = holds_lines(file.path);
    at_end_ = false;
    line_ = 0;
    offset_ = file_bytes_read_ = 0;
    buffer_.clear();
    buffer_begin_ = 0;
    return true;
  }
  return false;
}

void TextSource::refill() {
  buffer_.erase(0, buffer_begin_);
  buffer_begin_ = 0;
  const size_t before = buffer_.size();
  // The step grows with the line, so that a line of n bytes costs O(n), not O(n^2 / step).
  const size_t step = std::max(kReadBytes, before);
  buffer_.resize(before + step);
  const size_t got = std::fread(buffer_.data() + before, 1, step, file_.get());
  buffer_.resize(before + got);
  file_bytes_read_ += got;
  bytes_read_ += got;
  if (got == step) return;
  const SourceFile& file = files_[num_opened_ - 1];
  if (std::ferror(file_.get()) != 0) {
    throw std::runtime_error("cannot read '" + file.path + "': " + std::strerror(errno));
  }
  if (file_bytes_read_ != file.size_bytes) {
    throw std::runtime_error("'" + file.path + "' changed while it was read: expected " +
                             std::to_string(file.size_bytes) + " bytes, got " +
                             std::to_string(file_bytes_read_) +
                             "; start again when nothing writes to it");
  }
  at_end_ = true;
}

Record TextSource::take(size_t size) {
  Record record{files_[num_opened_ - 1].path, line_, offset_, buffer_.substr(buffer_begin_, size),
                true};
  buffer_begin_ += size;
  offset_ += size;
  return record;
}

std::optional<Record> TextSource::next_line() {
  while (true) {
    const size_t newline = buffer_.find('\n', buffer_begin_);
    const bool is_complete = newline != std::string::npos;
    if (!is_complete && !at_end_) {
      refill();
      continue;
    }
    const size_t size = (is_complete ? newline : buffer_.size()) - buffer_begin_;
    if (size == 0 && !is_complete) return std::nullopt;
    ++line_;
    Record record = take(size);
    if (is_complete) {
      ++buffer_begin_;
      ++offset_;
    }
    if (!is_blank(record.bytes)) return record;
  }
}

std::optional<Record> TextSource::next_row() {
  const SourceFile& file = files_[num_opened_ - 1];
  std::string_view text;
  const bool is_there = table_->next(text);
  // What stands between the pages of the column counts with them.
  const uint64_t read = is_there ? std::min(table_->position(), file.size_bytes) : file.size_bytes;
  bytes_read_ += std::max(read, file_bytes_read_) - file_bytes_read_;
  file_bytes_read_ = std::max(read, file_bytes_read_);
  if (!is_there) return std::nullopt;
  return Record{"row " + std::to_string(table_->row()) + " of " + file.path, 0, 0,
                std::string(text), true};
}

Record TextSource::next_piece() {
  const size_t limit = options_.piece_bytes > 0 ? options_.piece_bytes : std::string::npos;
  while (!at_end_ && buffer_.size() - buffer_begin_ <= limit) refill();
  const std::string_view rest = std::string_view(buffer_).substr(buffer_begin_);
  Record record = take(utf8_boundary(rest, limit));
  record.ends_document = at_end_ && buffer_begin_ == buffer_.size();
  if (record.ends_document) file_.reset();
  return record;
}

std::vector<SourceFile> find_text_files(const std::vector<std::string>& patterns) {
  std::vector<SourceFile> files;
  for (const std::string& path : expand_paths(patterns)) {
    if (path.ends_with(".bin") || path.ends_with(".tokens")) {
      throw std::runtime_error("expected text, got '" + path +
                               "', which holds token ids; name it in data.train as it is");
    }
    files.push_back(describe_file(path));
  }
  return files;
}

std::vector<std::string> read_documents(const std::vector<std::string>& patterns,
                                        TextOptions options, uint64_t max_bytes,
                                        const std::function<void(double)>& progress) {
  options.piece_bytes = kReadBytes;  // so that a file above max_bytes is never read whole
  TextSource source(find_text_files(patterns), std::move(options));
  const auto bytes_to_read = static_cast<double>(std::min(source.total_bytes(), max_bytes));
  std::vector<std::string> documents;
  bool begins = true;
  uint64_t bytes_left = max_bytes;
  uint64_t bytes_shown = 0;
  while (bytes_left > 0) {
    std::optional<Record> record = source.next();
    if (!record) break;
    const bool ends = record->ends_document;
    const std::string text = source.decode(*std::move(record));
    const size_t kept = utf8_boundary(text, bytes_left);
    if (begins) documents.emplace_back();
    documents.back().append(text, 0, kept);
    if (progress && source.bytes_read() != bytes_shown) {
      bytes_shown = source.bytes_read();
      progress(std::min(1.0, static_cast<double>(bytes_shown) / bytes_to_read));
    }
    if (kept < text.size()) break;
    bytes_left -= kept;
    begins = ends;
  }
  return documents;
}

}  // namespace narrowgauge::data
