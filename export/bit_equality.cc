#include "export/bit_equality.h"

#include <cstring>

namespace narrowgauge::exports {
namespace {

void require_bit_equal(const std::optional<at::Tensor>& expected,
                       const std::optional<at::Tensor>& actual, const std::string& what) {
  TORCH_CHECK(expected.has_value() == actual.has_value(), what, ": expected ",
              expected ? "one" : "none", ", the file has ", actual ? "one" : "none");
  if (expected) {
    exports::require_bit_equal(*expected, *actual, what);
  }
}

}  // namespace

void require_bit_equal(const at::Tensor& expected, const at::Tensor& actual,
                       const std::string& what) {
  TORCH_CHECK(expected.scalar_type() == actual.scalar_type() && expected.sizes() == actual.sizes(),
              what, ": expected ", expected.scalar_type(), " ", expected.sizes(), ", the file has ",
              actual.scalar_type(), " ", actual.sizes());
  const at::Tensor ours = expected.detach().to(at::kCPU).contiguous();
  const at::Tensor theirs = actual.detach().to(at::kCPU).contiguous();
  const auto* a = static_cast<const char*>(ours.const_data_ptr());
  const auto* b = static_cast<const char*>(theirs.const_data_ptr());
  const size_t size = ours.nbytes();
  if (size == 0 || std::memcmp(a, b, size) == 0) {
    return;
  }
  size_t first = 0;
  while (a[first] == b[first]) {
    ++first;
  }
  TORCH_CHECK(false, what, ": element ", first / ours.element_size(), " of ", ours.numel(),
              " differs between the model and the file; the export is not to be used");
}

void require_bit_equal(const quantization::QuantizedTensor& expected,
                       const quantization::QuantizedTensor& actual, const std::string& what) {
  require_bit_equal(expected.codes, actual.codes, what + " codes");
  require_bit_equal(expected.scale, actual.scale, what + " scale");
  require_bit_equal(expected.zero_point, actual.zero_point, what + " zero_point");
  require_bit_equal(expected.outer_scale, actual.outer_scale, what + " outer_scale");
}

}  // namespace narrowgauge::exports
