#include "comm/per_device_communicator.h"

#include <c10/util/Exception.h>

#include <utility>

namespace narrowgauge::comm {

PerDeviceCommunicator::PerDeviceCommunicator(std::shared_ptr<Communicator> cpu,
                                             std::shared_ptr<Communicator> device)
    : cpu_(std::move(cpu)), device_(std::move(device)) {
  TORCH_CHECK(cpu_->rank() == device_->rank() && cpu_->size() == device_->size(),
              "expected the same ranks on the CPU and on the device, got rank ", cpu_->rank(),
              " of ", cpu_->size(), " and rank ", device_->rank(), " of ", device_->size());
}

Communicator& PerDeviceCommunicator::serving(const at::Tensor& tensor) const {
  // The CPU's complains of a tensor that is none.
  return !tensor.defined() || tensor.is_cpu() ? *cpu_ : *device_;
}

void PerDeviceCommunicator::all_gather(const at::Tensor& output, const at::Tensor& input) {
  serving(output).all_gather(output, input);
}

void PerDeviceCommunicator::reduce_scatter(const at::Tensor& output, const at::Tensor& input,
                                           ReduceOp op) {
  serving(output).reduce_scatter(output, input, op);
}

void PerDeviceCommunicator::all_reduce(const at::Tensor& tensor, ReduceOp op) {
  serving(tensor).all_reduce(tensor, op);
}

void PerDeviceCommunicator::broadcast(const at::Tensor& tensor, int root) {
  serving(tensor).broadcast(tensor, root);
}

std::shared_ptr<Communicator> PerDeviceCommunicator::split(int color, int key) {
  auto cpu = cpu_->split(color, key);
  return std::make_shared<PerDeviceCommunicator>(std::move(cpu), device_->split(color, key));
}

}  // namespace narrowgauge::comm
