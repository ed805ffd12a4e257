#include "comm/self_communicator.h"

#include "comm/collective_arguments.h"

namespace narrowgauge::comm {
namespace {

// The device that both sides of a collective must be on.
c10::Device device_of(const at::Tensor& tensor) {
  return tensor.defined() && !tensor.is_meta() ? tensor.device() : c10::Device(c10::kCPU);
}

void copy(const at::Tensor& output, const at::Tensor& input) {
  if (output.numel() > 0 && output.const_data_ptr() != input.const_data_ptr()) {
    output.view({-1}).copy_(input.view({-1}));
  }
}

}  // namespace

void SelfCommunicator::all_gather(const at::Tensor& output, const at::Tensor& input) {
  check_all_gather(output, input, 0, 1, device_of(input));
  copy(output, input);
}

void SelfCommunicator::reduce_scatter(const at::Tensor& output, const at::Tensor& input,
                                      ReduceOp op) {
  check_reduce_scatter(output, input, 1, device_of(input));
  check_reduce_op(op, input.scalar_type());
  copy(output, input);
}

void SelfCommunicator::all_reduce(const at::Tensor& tensor, ReduceOp op) {
  check_all_reduce(tensor, device_of(tensor));
  check_reduce_op(op, tensor.scalar_type());
}

void SelfCommunicator::broadcast(const at::Tensor& tensor, int root) {
  check_broadcast(tensor, root, 1, device_of(tensor));
}

std::shared_ptr<Communicator> SelfCommunicator::split(int color, int /*key*/) {
  check_split(color);
  return std::make_shared<SelfCommunicator>();
}

}  // namespace narrowgauge::comm
