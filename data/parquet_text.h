#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/mapped_file.h"
#include "data/parquet_metadata.h"

namespace narrowgauge::data {

// The values of a column of strings of a parquet file, in the order of its rows: pages of both
// versions, plain or with a dictionary, of any nesting of row groups; a column on the top level.
// Memory: one page, and the dictionary of one row group.
class ParquetText {
 public:
  // Throws as find_parquet_column.
  ParquetText(const std::string& path, const std::string& column);

  // The next value that is not null; false after the last. `text` is valid until the next call.
  // Throws std::runtime_error that begins with the path for a page that is damaged, or encoded or
  // compressed in another way.
  bool next(std::string_view& text);

  int64_t row() const { return row_; }  // from 1, of the value that next gave
  uint64_t position() const { return at_; }

 private:
  struct Page;

  bool open_next_page();
  void open_dictionary(const Page& page);
  void open_data(const Page& page);
  void decode_indices();
  bool next_value(std::string_view& text);

  MappedFile file_;
  ParquetColumn column_;
  size_t chunk_ = 0;          // the one that is read
  uint64_t page_begin_ = 0;   // in the file, of the page that was read last
  uint64_t at_ = 0;           // of the next one
  int64_t chunk_values_ = 0;  // of its pages so far
  int64_t row_ = 0;
  std::string dictionary_page_;
  std::vector<std::string_view> dictionary_;
  std::string page_;               // decompressed
  std::string_view values_;        // of page_, not yet given out
  std::vector<uint32_t> levels_;   // of the page: 1 for each value that is there
  std::vector<uint32_t> indices_;  // into the dictionary, where the page has such
  bool has_indices_ = false;
  size_t next_level_ = 0;
  size_t next_index_ = 0;
};

}  // namespace narrowgauge::data
