#include "tests/support/numerics.h"

#include <ATen/ops/full_like.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <sstream>
#include <string>

namespace narrowgauge::testing {
namespace {

// "[2, 0, 5]" of a flat index in a contiguous tensor of these sizes.
std::string coordinate(int64_t flat, at::IntArrayRef sizes) {
  std::string text;
  for (size_t dim = sizes.size(); dim-- > 0;) {
    text.insert(0, (dim == 0 ? "" : ", ") + std::to_string(flat % sizes[dim]));
    flat /= sizes[dim];
  }
  return "[" + text + "]";
}

at::Tensor flat_double(const at::Tensor& x) {
  return x.detach().to(at::kCPU, at::kDouble).contiguous().flatten();
}

// Of one shape; the test fails here otherwise.
bool same_shape(const at::Tensor& actual, const at::Tensor& expected) {
  EXPECT_EQ(actual.sizes().vec(), expected.sizes().vec());
  return actual.sizes() == expected.sizes();
}

// The root mean square of the finite elements, once for each element.
at::Tensor rms_of(const at::Tensor& x) {
  const at::Tensor finite = x.masked_select(x.isfinite());
  const double mean = finite.numel() == 0 ? 0.0 : finite.square().mean().item<double>();
  return at::full_like(x, std::sqrt(mean));
}

}  // namespace

double sqnr_db(const at::Tensor& reference, const at::Tensor& x) {
  TORCH_CHECK(reference.sizes() == x.sizes(), "expected equal shapes, got ", reference.sizes(),
              " and ", x.sizes());
  const at::Tensor wide = flat_double(reference);
  const auto signal = wide.square().sum().item<double>();
  const auto noise = wide.sub(flat_double(x)).square().sum().item<double>();
  return noise == 0 ? std::numeric_limits<double>::infinity() : 10 * std::log10(signal / noise);
}

void expect_bitwise_equal(const at::Tensor& actual, const at::Tensor& expected) {
  ASSERT_TRUE(same_shape(actual, expected));
  ASSERT_EQ(actual.scalar_type(), expected.scalar_type());
  const at::Tensor a = actual.detach().cpu().contiguous();
  const at::Tensor e = expected.detach().cpu().contiguous();
  const auto size = static_cast<size_t>(a.element_size());
  const auto* a_bytes = static_cast<const char*>(a.const_data_ptr());
  const auto* e_bytes = static_cast<const char*>(e.const_data_ptr());
  int64_t num_differing = 0;
  int64_t first = -1;
  for (int64_t i = 0; i < a.numel(); ++i) {
    const size_t at = static_cast<size_t>(i) * size;
    if (std::memcmp(a_bytes + at, e_bytes + at, size) != 0) {
      first = num_differing++ == 0 ? i : first;
    }
  }
  if (num_differing > 0) {
    ADD_FAILURE() << num_differing << " of " << a.numel() << " elements differ, first at "
                  << coordinate(first, a.sizes()) << ": expected "
                  << e.flatten()[first].item<double>() << ", got "
                  << a.flatten()[first].item<double>();
  }
}

double tolerance(at::ScalarType dtype, int64_t k) {
  constexpr double kFp32Roundoff = 0x1p-24;
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16, "expected fp32 or bf16, got ", dtype);
  const double roundoff = dtype == at::kFloat ? kFp32Roundoff : 0x1p-8;
  return roundoff + static_cast<double>(k + 8) * kFp32Roundoff;
}

void expect_close(const at::Tensor& actual, const at::Tensor& expected, double tolerance,
                  const at::Tensor& magnitude) {
  ASSERT_TRUE(same_shape(actual, expected));
  const at::Tensor a = flat_double(actual);
  const at::Tensor e = flat_double(expected);
  const at::Tensor scale = magnitude.defined() ? flat_double(magnitude).abs() : rms_of(e);
  double worst = 0;
  int64_t worst_at = -1;
  for (int64_t i = 0; i < a.numel(); ++i) {
    const double got = a.const_data_ptr<double>()[i];
    const double want = e.const_data_ptr<double>()[i];
    double excess = 0;
    if (std::isfinite(want) && std::isfinite(got)) {
      const double bound = tolerance * (std::abs(want) + scale.const_data_ptr<double>()[i]);
      excess = got == want ? 0 : std::abs(got - want) / bound;
    } else if (!(std::isnan(want) && std::isnan(got)) && got != want) {
      excess = std::numeric_limits<double>::infinity();
    }
    if (excess > worst) {
      worst = excess;
      worst_at = i;
    }
  }
  if (worst > 1) {
    ADD_FAILURE() << "at " << coordinate(worst_at, actual.sizes()) << ": expected "
                  << e.const_data_ptr<double>()[worst_at] << ", got "
                  << a.const_data_ptr<double>()[worst_at] << ", which is " << worst
                  << " times the error allowed (" << tolerance << " relative)";
  }
}

}  // namespace narrowgauge::testing
