#include "export/ggml_type.h"

#include <array>
#include <stdexcept>

namespace narrowgauge::exports {
namespace {

struct Row {
  GgmlType type;
  const char* name;
  GgmlBlock block;
  uint32_t file_type;
};

// Blocks: ggml-common.h (block_q4_0, block_q8_0: an fp16 scale, then the codes of 32 elements).
constexpr std::array<Row, 5> kTypes = {{
    {GgmlType::kF32, "F32", {1, 4}, 0},
    {GgmlType::kF16, "F16", {1, 2}, 1},
    {GgmlType::kQ4_0, "Q4_0", {32, 2 + 16}, 2},
    {GgmlType::kQ8_0, "Q8_0", {32, 2 + 32}, 7},
    {GgmlType::kBf16, "BF16", {1, 2}, 32},
}};

const Row& row_of(GgmlType type) {
  for (const Row& row : kTypes) {
    if (row.type == type) {
      return row;
    }
  }
  throw std::invalid_argument("expected a ggml type of this program, got number " +
                              std::to_string(static_cast<uint32_t>(type)));
}

}  // namespace

std::optional<GgmlType> ggml_type_from_number(uint32_t number) {
  for (const Row& row : kTypes) {
    if (static_cast<uint32_t>(row.type) == number) {
      return row.type;
    }
  }
  return std::nullopt;
}

GgmlBlock ggml_block(GgmlType type) { return row_of(type).block; }

std::string ggml_type_name(GgmlType type) { return row_of(type).name; }

uint32_t gguf_file_type(GgmlType type) { return row_of(type).file_type; }

}  // namespace narrowgauge::exports
