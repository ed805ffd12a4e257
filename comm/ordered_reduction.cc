#include "comm/ordered_reduction.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <array>
#include <type_traits>

namespace narrowgauge::comm {
namespace {

// Elements reduced at once: the accumulators stay in the first-level cache.
constexpr int64_t kBlock = 1024;

template <typename T, typename Accumulator>
void reduce_block(T* output, const std::vector<const void*>& parts, int64_t begin, int64_t count,
                  ReduceOp op) {
  std::array<Accumulator, kBlock> total;
  const T* first = static_cast<const T*>(parts[0]) + begin;
  for (int64_t i = 0; i < count; ++i) {
    total[i] = static_cast<Accumulator>(first[i]);
  }
  for (size_t rank = 1; rank < parts.size(); ++rank) {
    const T* part = static_cast<const T*>(parts[rank]) + begin;
    if (op == ReduceOp::kMax) {
      for (int64_t i = 0; i < count; ++i) {
        const auto value = static_cast<Accumulator>(part[i]);
        // The second test is true for NaN alone; a NaN already in total compares false to all.
        total[i] = value > total[i] || value != value ? value : total[i];
      }
    } else {
      for (int64_t i = 0; i < count; ++i) {
        total[i] += static_cast<Accumulator>(part[i]);
      }
    }
  }
  if (op == ReduceOp::kAvg) {
    for (int64_t i = 0; i < count; ++i) {
      total[i] /= static_cast<Accumulator>(parts.size());
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    output[begin + i] = static_cast<T>(total[i]);
  }
}

template <typename T, typename Accumulator = T>
void reduce(void* output, const std::vector<const void*>& parts, int64_t numel, ReduceOp op) {
  TORCH_CHECK(!std::is_integral_v<T> || op != ReduceOp::kAvg,
              "expected kSum or kMax for integers, got kAvg; sum and divide");
  for (int64_t begin = 0; begin < numel; begin += kBlock) {
    reduce_block<T, Accumulator>(static_cast<T*>(output), parts, begin,
                                 std::min(kBlock, numel - begin), op);
  }
}

}  // namespace

bool is_reducible(c10::ScalarType dtype) {
  switch (dtype) {
    case c10::ScalarType::Double:
    case c10::ScalarType::Float:
    case c10::ScalarType::BFloat16:
    case c10::ScalarType::Half:
    case c10::ScalarType::Long:
    case c10::ScalarType::Int:
      return true;
    default:
      return false;
  }
}

void reduce_in_rank_order(void* output, const std::vector<const void*>& parts, int64_t numel,
                          c10::ScalarType dtype, ReduceOp op) {
  switch (dtype) {
    case c10::ScalarType::Double:
      return reduce<double>(output, parts, numel, op);
    case c10::ScalarType::Float:
      return reduce<float>(output, parts, numel, op);
    case c10::ScalarType::BFloat16:
      return reduce<c10::BFloat16, float>(output, parts, numel, op);
    case c10::ScalarType::Half:
      return reduce<c10::Half, float>(output, parts, numel, op);
    case c10::ScalarType::Long:
      return reduce<int64_t>(output, parts, numel, op);
    case c10::ScalarType::Int:
      return reduce<int32_t>(output, parts, numel, op);
    default:
      TORCH_CHECK(false, "expected float64, float32, bfloat16, float16, int64 or int32, got ",
                  dtype, "; convert to float32 first");
  }
}

}  // namespace narrowgauge::comm
