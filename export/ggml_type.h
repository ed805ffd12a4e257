#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace narrowgauge::exports {

// The number formats of GGUF tensors that this program writes, with ggml's own numbers.
enum class GgmlType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ8_0 = 8,
  kBf16 = 30,
};

// A block of consecutive elements of a row shares a scale; plain formats have blocks of one.
struct GgmlBlock {
  int64_t elements;
  int64_t bytes;
};

// Nothing for a number that is none of GgmlType.
std::optional<GgmlType> ggml_type_from_number(uint32_t number);

GgmlBlock ggml_block(GgmlType type);

// As llama.cpp prints it: F32, F16, BF16, Q4_0, Q8_0.
std::string ggml_type_name(GgmlType type);

// Its llama_ftype: what general.file_type says of a model whose matrices have this type.
uint32_t gguf_file_type(GgmlType type);

}  // namespace narrowgauge::exports
