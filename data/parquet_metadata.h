#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/decompress.h"
#include "data/mapped_file.h"

namespace narrowgauge::data {

// A column of strings in one row group.
struct ParquetChunk {
  uint64_t begin = 0;  // of its first page in the file
  uint64_t end = 0;
  int64_t num_values = 0;  // nulls included
  Compression compression = Compression::kNone;
};

// Where a parquet file keeps the column of strings called `column`, row group by row group.
struct ParquetColumn {
  bool is_optional = false;  // its values may be null
  std::vector<ParquetChunk> chunks;
};

// Throws std::runtime_error that begins with the path for what is no parquet file, is encrypted,
// truncated or damaged, and for a column that is not there (naming those that are) or holds no
// strings.
ParquetColumn find_parquet_column(const MappedFile& file, const std::string& column);

}  // namespace narrowgauge::data
