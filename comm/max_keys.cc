#include "comm/max_keys.h"

#include <c10/util/Exception.h>

#include <cstdint>
#include <limits>

namespace narrowgauge::comm {
namespace {

// Turns bits into keys and keys into bits: the sign stays, so the same bits are inverted again.
at::Tensor exchange_order(const at::Tensor& bits) {
  if (bits.scalar_type() == at::kLong) {
    return bits.bitwise_xor(
        bits.bitwise_right_shift(63).bitwise_and(std::numeric_limits<int64_t>::max()));
  }
  return bits.bitwise_xor(
      bits.bitwise_right_shift(31).bitwise_and(int64_t{std::numeric_limits<int32_t>::max()}));
}

}  // namespace

at::Tensor max_keys(const at::Tensor& x) {
  TORCH_CHECK(x.is_floating_point(), "expected floats, got ", x.scalar_type());
  const bool wide = x.scalar_type() == at::kDouble;
  const at::Tensor floats = wide ? x : x.to(at::kFloat);
  // One NaN for all: with its sign bit set, a NaN would be the smallest key.
  const at::Tensor canonical =
      floats.masked_fill(floats.isnan(), std::numeric_limits<double>::quiet_NaN());
  return exchange_order(canonical.view(wide ? at::kLong : at::kInt));
}

at::Tensor from_max_keys(const at::Tensor& keys, at::ScalarType dtype) {
  const bool wide = keys.scalar_type() == at::kLong;
  return exchange_order(keys).view(wide ? at::kDouble : at::kFloat).to(dtype);
}

}  // namespace narrowgauge::comm
