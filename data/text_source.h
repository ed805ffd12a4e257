#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "data/parquet_text.h"
#include "data/source_files.h"

namespace narrowgauge::data {

struct TextOptions {
  std::string text_field = "text";  // of the objects in a .jsonl file; column of a .parquet file
  bool replace_invalid_utf8 = false;
  // Above 0, a plain file comes as several records of about this many bytes, cut between
  // characters. Only for a tokenizer whose ids do not depend on what stands around a character.
  size_t piece_bytes = 0;
};

// The raw bytes of one document (or of a piece of one), as they stand in the file.
struct Record {
  std::string path;
  int64_t line = 0;     // from 1 in a .jsonl file; 0 in others
  uint64_t offset = 0;  // of bytes[0] in the file
  std::string bytes;
  bool ends_document = true;
};

// The documents of text files, in the order of the files: each line of .jsonl and .ndjson files
// (blank lines do not count), each value of text_field's column of .parquet files (see ParquetText;
// nulls do not count), each other file as a whole. Empty files are passed over and counted.
//
// Reading is sequential and cheap; decoding is not, so the two are apart: one thread calls `next`,
// any number call `decode`. Memory: one record at a time, plus a read buffer.
class TextSource {
 public:
  TextSource(std::vector<SourceFile> files, TextOptions options);

  // The next record, or nothing after the last. Throws std::runtime_error when a file cannot be
  // read or has not the size it had when it was described.
  std::optional<Record> next();

  // The text of a record, well-formed UTF-8. Throws std::runtime_error that begins with
  // path:line:column for JSON that does not parse or lacks the field, and with path and byte
  // offset for text that is not UTF-8 (unless replace_invalid_utf8). Thread-safe.
  std::string decode(Record record) const;
  // The JSON object of a record of a .jsonl file. Throws std::runtime_error as decode does, and for
  // another file.
  nlohmann::ordered_json decode_object(Record record) const;

  uint64_t bytes_read() const { return bytes_read_; }
  uint64_t total_bytes() const { return total_bytes_; }
  int64_t num_empty_files() const { return num_empty_files_; }

 private:
  struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  bool open_next_file();
  void refill();             // appends to buffer_, or finds the end of the file
  Record take(size_t size);  // the next bytes of buffer_
  std::optional<Record> next_line();
  Record next_piece();
  std::optional<Record> next_row();

  std::vector<SourceFile> files_;
  TextOptions options_;
  size_t num_opened_ = 0;
  std::unique_ptr<std::FILE, CloseFile> file_;  // files_[num_opened_ - 1], until its last record
  bool has_lines_ = false;
  std::unique_ptr<ParquetText> table_;  // in place of file_
  bool at_end_ = false;                 // all of the file is in buffer_ or given out
  int64_t line_ = 0;
  uint64_t offset_ = 0;  // in the file, of buffer_[buffer_begin_]
  std::string buffer_;   // read, from buffer_begin_ on not yet given out
  size_t buffer_begin_ = 0;
  uint64_t file_bytes_read_ = 0;
  uint64_t bytes_read_ = 0;
  uint64_t total_bytes_ = 0;
  int64_t num_empty_files_ = 0;
};

// The files that `patterns` name (see expand_paths). Throws std::runtime_error for one that holds
// token ids, .bin or .tokens.
std::vector<SourceFile> find_text_files(const std::vector<std::string>& patterns);

// The documents of those files in their order, up to `max_bytes` of text; the last one is cut
// there, between characters. `progress` hears the part read, 0 to 1. Throws as TextSource does.
std::vector<std::string> read_documents(const std::vector<std::string>& patterns,
                                        TextOptions options, uint64_t max_bytes,
                                        const std::function<void(double)>& progress = nullptr);

}  // namespace narrowgauge::data
