#include "data/thrift_reader.h"

#include <stdexcept>
#include <string>

namespace narrowgauge::data {
namespace {

constexpr int kMaxDepth = 32;

}  // namespace

void ThriftReader::fail(const char* what) {
  throw std::runtime_error(std::string("damaged metadata: ") + what);
}

ThriftReader::Type ThriftReader::type_of(int code) {
  if (code > static_cast<int>(Type::kStruct)) fail("an unknown type");
  return static_cast<Type>(code);
}

void ThriftReader::advance(uint64_t size) {
  if (size > bytes_.size() - at_) fail("they end too early");
  at_ += size;
}

uint8_t ThriftReader::read_byte() {
  advance(1);
  return static_cast<uint8_t>(bytes_[at_ - 1]);
}

uint64_t ThriftReader::read_varint() {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    const uint8_t byte = read_byte();
    value |= static_cast<uint64_t>(byte & 127) << shift;
    if (byte < 128) return value;
  }
  fail("a number of more than 64 bits");
}

int64_t ThriftReader::read_zigzag() {
  const uint64_t value = read_varint();
  return static_cast<int64_t>((value >> 1) ^ (~(value & 1) + 1));
}

std::string_view ThriftReader::read_binary() {
  const uint64_t size = read_varint();
  advance(size);
  return {reinterpret_cast<const char*>(bytes_.data()) + at_ - size, size};
}

ThriftReader::List ThriftReader::read_list_header() {
  const uint8_t header = read_byte();
  const uint64_t size = header >> 4 == 15 ? read_varint() : header >> 4;
  // An element takes a byte at least.
  if (size > bytes_.size() - at_) fail("a list that is longer than they are");
  return {type_of(header & 15), size};
}

void ThriftReader::skip(Type type, int depth) {
  if (depth > kMaxDepth) fail("nested too deeply");
  switch (type) {
    case Type::kStop:
    case Type::kTrue:
    case Type::kFalse:
      return;
    case Type::kByte:
      return advance(1);
    case Type::kI16:
    case Type::kI32:
    case Type::kI64:
      read_varint();
      return;
    case Type::kDouble:
      return advance(8);
    case Type::kBinary:
      read_binary();
      return;
    case Type::kStruct:
      return read_struct([&](int64_t, Type field) {
        skip(field, depth + 1);
        return true;
      });
    case Type::kList:
    case Type::kSet: {
      const List list = read_list_header();
      const bool is_boolean = list.type == Type::kTrue || list.type == Type::kFalse;
      for (uint64_t i = 0; i < list.size; ++i) {
        skip(is_boolean ? Type::kByte : list.type, depth + 1);
      }
      return;
    }
    case Type::kMap: {
      const uint64_t size = read_varint();
      if (size == 0) return;
      if (size > bytes_.size() - at_) fail("a map that is longer than they are");
      const uint8_t types = read_byte();
      for (uint64_t i = 0; i < size; ++i) {
        skip(type_of(types >> 4), depth + 1);
        skip(type_of(types & 15), depth + 1);
      }
      return;
    }
  }
}

}  // namespace narrowgauge::data
