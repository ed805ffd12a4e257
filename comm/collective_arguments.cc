#include "comm/collective_arguments.h"

#include <c10/util/Exception.h>

#include <cstddef>
#include <functional>

#include "comm/ordered_reduction.h"

namespace narrowgauge::comm {
namespace {

void check_dense(const char* operation, const char* name, const at::Tensor& tensor,
                 c10::Device device) {
  TORCH_CHECK(tensor.defined(), operation, ": expected a tensor as ", name, ", got none");
  TORCH_CHECK(tensor.device() == device, operation, ": expected ", name, " on ", device, ", got ",
              tensor.device());
  TORCH_CHECK(tensor.is_contiguous(), operation, ": expected ", name, " to be contiguous, got ",
              tensor.sizes(), " with strides ", tensor.strides(), "; call contiguous()");
}

void check_reducible(const char* operation, const at::Tensor& tensor) {
  TORCH_CHECK(is_reducible(tensor.scalar_type()), operation,
              ": expected float64, float32, bfloat16, float16, int64 or int32, got ",
              tensor.scalar_type(), "; convert to float32 first");
}

void check_counts(const char* operation, const at::Tensor& whole, const at::Tensor& part,
                  int size) {
  TORCH_CHECK(whole.scalar_type() == part.scalar_type(), operation,
              ": expected input and output of one dtype, got ", whole.scalar_type(), " and ",
              part.scalar_type());
  TORCH_CHECK(whole.numel() == part.numel() * size, operation, ": expected ", size, " x ",
              part.numel(), " elements for ", size, " ranks, got ", whole.numel());
}

bool overlaps(const at::Tensor& a, const at::Tensor& b) {
  const auto* a_begin = static_cast<const std::byte*>(a.const_data_ptr());
  const auto* b_begin = static_cast<const std::byte*>(b.const_data_ptr());
  const std::less<const std::byte*> before;
  return a.nbytes() > 0 && b.nbytes() > 0 && before(a_begin, b_begin + b.nbytes()) &&
         before(b_begin, a_begin + a.nbytes());
}

}  // namespace

bool gathers_in_place(const at::Tensor& output, const at::Tensor& input, int rank) {
  return input.const_data_ptr() ==
         static_cast<const std::byte*>(output.const_data_ptr()) + rank * input.nbytes();
}

void check_all_gather(const at::Tensor& output, const at::Tensor& input, int rank, int size,
                      c10::Device device) {
  check_dense("all_gather", "output", output, device);
  check_dense("all_gather", "input", input, device);
  check_counts("all_gather", output, input, size);
  TORCH_CHECK(gathers_in_place(output, input, rank) || !overlaps(output, input),
              "all_gather: expected input apart from output or this rank's slice of it, got "
              "another overlap");
}

void check_reduce_scatter(const at::Tensor& output, const at::Tensor& input, int size,
                          c10::Device device) {
  check_dense("reduce_scatter", "output", output, device);
  check_dense("reduce_scatter", "input", input, device);
  check_counts("reduce_scatter", input, output, size);
  check_reducible("reduce_scatter", input);
  TORCH_CHECK(!overlaps(output, input), "reduce_scatter: expected output apart from input");
}

void check_all_reduce(const at::Tensor& tensor, c10::Device device) {
  check_dense("all_reduce", "tensor", tensor, device);
  check_reducible("all_reduce", tensor);
}

void check_broadcast(const at::Tensor& tensor, int root, int size, c10::Device device) {
  check_dense("broadcast", "tensor", tensor, device);
  TORCH_CHECK(root >= 0 && root < size, "broadcast: expected a root in [0, ", size, "), got ",
              root);
}

void check_split(int color) {
  TORCH_CHECK(color >= 0, "split: expected a color >= 0, got ", color);
}

void check_reduce_op(ReduceOp op, c10::ScalarType dtype) {
  TORCH_CHECK(op != ReduceOp::kAvg || !c10::isIntegralType(dtype, /*includeBool=*/true),
              "expected kSum or kMax for integers, got kAvg; sum and divide");
}

}  // namespace narrowgauge::comm
