#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace narrowgauge::data {

// Reads Thrift's compact protocol (thrift/doc/specs/thrift-compact-protocol.md), in which parquet
// files keep their metadata. Every method throws std::runtime_error at the end of the bytes and for
// values that no writer leaves; nothing is read beyond them, and nothing allocated.
class ThriftReader {
 public:
  enum class Type : uint8_t {
    kStop = 0,
    kTrue = 1,
    kFalse = 2,
    kByte = 3,
    kI16 = 4,
    kI32 = 5,
    kI64 = 6,
    kDouble = 7,
    kBinary = 8,
    kList = 9,
    kSet = 10,
    kMap = 11,
    kStruct = 12,
  };

  explicit ThriftReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  size_t position() const { return at_; }

  // Calls read_field(id, type) for each field of a struct; one that returns false has read nothing,
  // and the field is skipped.
  template <typename ReadField>
  void read_struct(ReadField read_field) {
    int64_t id = 0;
    while (true) {
      const uint8_t header = read_byte();
      const Type type = type_of(header & 15);
      if (type == Type::kStop) return;
      id = header >> 4 != 0 ? id + (header >> 4) : read_zigzag();
      if (!read_field(id, type)) skip(type);
    }
  }

  // Calls read_element() for each element of a list, whose elements must be of `type`.
  template <typename ReadElement>
  void read_list(Type type, ReadElement read_element) {
    const List list = read_list_header();
    if (list.type != type) fail("a list of another type");
    for (uint64_t i = 0; i < list.size; ++i) read_element();
  }

  int64_t read_zigzag();
  std::string_view read_binary();
  void skip(Type type) { skip(type, 0); }

 private:
  struct List {
    Type type;
    uint64_t size;
  };

  [[noreturn]] static void fail(const char* what);
  static Type type_of(int code);
  uint8_t read_byte();
  uint64_t read_varint();
  List read_list_header();
  void skip(Type type, int depth);
  void advance(uint64_t size);

  std::span<const std::byte> bytes_;
  size_t at_ = 0;
};

}  // namespace narrowgauge::data
