// The footer of a parquet file (parquet-format/src/main/thrift/parquet.thrift): FileMetaData, its
// size as 4 bytes, "PAR1". Numbers in the code below are the ids of fields there.
#include "data/parquet_metadata.h"

#include <cstring>
#include <optional>
#include <stdexcept>

#include "data/thrift_reader.h"

namespace narrowgauge::data {
namespace {

using Type = ThriftReader::Type;

constexpr int64_t kByteArray = 6;
constexpr int64_t kRequired = 0;
constexpr int64_t kOptional = 1;
constexpr size_t kTailBytes = 8;  // size of the metadata, magic

struct SchemaElement {
  std::string name;
  int64_t type = -1;
  int64_t repetition = kRequired;
  int64_t num_children = 0;
};

struct Column {
  std::string path;  // "messages.list.element.role"
  ParquetChunk chunk;
};

struct Metadata {
  std::vector<SchemaElement> schema;
  std::vector<std::vector<Column>> row_groups;
};

SchemaElement read_schema_element(ThriftReader& in) {
  SchemaElement element;
  in.read_struct([&](int64_t id, Type type) {
    if (id == 4 && type == Type::kBinary) return element.name = in.read_binary(), true;
    if (type != Type::kI32) return false;
    if (id == 1) return element.type = in.read_zigzag(), true;
    if (id == 3) return element.repetition = in.read_zigzag(), true;
    if (id == 5) return element.num_children = in.read_zigzag(), true;
    return false;
  });
  return element;
}

void read_column_metadata(ThriftReader& in, Column& column) {
  int64_t data = 0;
  int64_t dictionary = 0;
  int64_t size = 0;
  in.read_struct([&](int64_t id, Type type) {
    if (id == 3 && type == Type::kList) {
      in.read_list(Type::kBinary, [&] {
        column.path += column.path.empty() ? "" : ".";
        column.path += in.read_binary();
      });
      return true;
    }
    if (id == 4 && type == Type::kI32) {
      return column.chunk.compression = static_cast<Compression>(in.read_zigzag()), true;
    }
    if (type != Type::kI64) return false;
    if (id == 5) return column.chunk.num_values = in.read_zigzag(), true;
    if (id == 7) return size = in.read_zigzag(), true;
    if (id == 9) return data = in.read_zigzag(), true;
    if (id == 11) return dictionary = in.read_zigzag(), true;
    return false;
  });
  // Some writers leave a dictionary's place at 0 where there is none.
  const int64_t begin = dictionary > 0 && dictionary < data ? dictionary : data;
  if (begin < 0 || size < 0 || column.chunk.num_values < 0) {
    throw std::runtime_error("damaged metadata: a column at a place below 0");
  }
  column.chunk.begin = static_cast<uint64_t>(begin);
  column.chunk.end = column.chunk.begin + static_cast<uint64_t>(size);
}

Column read_column(ThriftReader& in) {
  Column column;
  in.read_struct([&](int64_t id, Type type) {
    if (id == 1 && type == Type::kBinary && !in.read_binary().empty()) {
      throw std::runtime_error("expected columns in this file, got one in another");
    }
    if (id == 3 && type == Type::kStruct) return read_column_metadata(in, column), true;
    return id == 1 && type == Type::kBinary;
  });
  return column;
}

std::vector<Column> read_row_group(ThriftReader& in) {
  std::vector<Column> columns;
  in.read_struct([&](int64_t id, Type type) {
    if (id != 1 || type != Type::kList) return false;
    in.read_list(Type::kStruct, [&] { columns.push_back(read_column(in)); });
    return true;
  });
  return columns;
}

Metadata read_metadata(std::span<const std::byte> bytes) {
  Metadata metadata;
  ThriftReader in(bytes);
  in.read_struct([&](int64_t id, Type type) {
    if (type != Type::kList || (id != 2 && id != 4)) return false;
    in.read_list(Type::kStruct, [&] {
      if (id == 2) {
        metadata.schema.push_back(read_schema_element(in));
      } else {
        metadata.row_groups.push_back(read_row_group(in));
      }
    });
    return true;
  });
  return metadata;
}

std::span<const std::byte> footer_of(std::span<const std::byte> bytes) {
  const auto has_magic = [&](const char* magic) {
    return bytes.size() >= 4 + kTailBytes && std::memcmp(bytes.data(), magic, 4) == 0 &&
           std::memcmp(bytes.data() + bytes.size() - 4, magic, 4) == 0;
  };
  if (has_magic("PARE"))
    throw std::runtime_error("expected a parquet file in clear, got one that is encrypted");
  if (!has_magic("PAR1")) {
    throw std::runtime_error(
        "expected PAR1 at both ends of a parquet file; it is truncated or none");
  }
  uint32_t size = 0;
  std::memcpy(&size, bytes.data() + bytes.size() - kTailBytes, sizeof size);
  if (size > bytes.size() - 4 - kTailBytes) {
    throw std::runtime_error("damaged: its metadata have " + std::to_string(size) +
                             " bytes, the whole file " + std::to_string(bytes.size()));
  }
  return bytes.subspan(bytes.size() - kTailBytes - size, size);
}

// Elements behind the root are its children, each followed by its own.
std::optional<SchemaElement> find_top_level(const std::vector<SchemaElement>& schema,
                                            const std::string& name, std::string& names) {
  std::optional<SchemaElement> found;
  int64_t inside = 0;  // elements left of a nested column
  for (size_t i = 1; i < schema.size(); ++i) {
    const SchemaElement& element = schema[i];
    if (inside == 0) {
      names += (names.empty() ? "" : ", ") + element.name;
      if (element.name == name) found = element;
    }
    inside += element.num_children - (inside > 0 ? 1 : 0);
    if (inside < 0 || element.num_children < 0) {
      throw std::runtime_error("damaged metadata: a schema that is no tree");
    }
  }
  return found;
}

ParquetColumn find_column(std::span<const std::byte> bytes, const std::string& name) {
  const Metadata metadata = read_metadata(footer_of(bytes));
  std::string names;
  const auto element = find_top_level(metadata.schema, name, names);
  if (!element) {
    throw std::runtime_error("expected the column '" + name + "', got " +
                             (names.empty() ? "no column" : "'" + names + "'") +
                             "; set data.text_field (--field) to the column that holds the text");
  }
  if (element->num_children != 0 || element->type != kByteArray ||
      (element->repetition != kRequired && element->repetition != kOptional)) {
    throw std::runtime_error("expected strings in the column '" + name +
                             "', got another type; set data.text_field (--field) to the column "
                             "that holds the text, or write nested columns as .jsonl");
  }
  ParquetColumn column{element->repetition == kOptional, {}};
  for (const auto& row_group : metadata.row_groups) {
    for (const Column& candidate : row_group) {
      if (candidate.path == name) column.chunks.push_back(candidate.chunk);
    }
  }
  for (const ParquetChunk& chunk : column.chunks) {
    if (chunk.begin < 4 || chunk.end > bytes.size()) {
      throw std::runtime_error("damaged metadata: the column '" + name + "' from byte " +
                               std::to_string(chunk.begin) + " to " + std::to_string(chunk.end) +
                               " of " + std::to_string(bytes.size()));
    }
  }
  if (column.chunks.size() != metadata.row_groups.size()) {
    throw std::runtime_error("damaged metadata: row groups without the column '" + name + "'");
  }
  return column;
}

}  // namespace

ParquetColumn find_parquet_column(const MappedFile& file, const std::string& column) {
  try {
    return find_column(file.bytes(), column);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error("'" + file.path() + "': " + error.what());
  }
}

}  // namespace narrowgauge::data
