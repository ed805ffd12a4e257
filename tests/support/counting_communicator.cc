#include "tests/support/counting_communicator.h"

#include <algorithm>

namespace narrowgauge::testing {
namespace {

CollectiveRecord record_of(const char* operation, const at::Tensor& tensor) {
  return {operation, tensor.scalar_type(), static_cast<int64_t>(tensor.nbytes())};
}

}  // namespace

int64_t CollectiveLog::count(const std::string& operation) const {
  return std::count_if(records_.begin(), records_.end(),
                       [&](const auto& record) { return record.operation == operation; });
}

void CountingCommunicator::all_gather(const at::Tensor& output, const at::Tensor& input) {
  log_->add(record_of("all_gather", output));
  inner_->all_gather(output, input);
}

void CountingCommunicator::reduce_scatter(const at::Tensor& output, const at::Tensor& input,
                                          comm::ReduceOp op) {
  log_->add(record_of("reduce_scatter", input));
  inner_->reduce_scatter(output, input, op);
}

void CountingCommunicator::all_reduce(const at::Tensor& tensor, comm::ReduceOp op) {
  log_->add(record_of("all_reduce", tensor));
  inner_->all_reduce(tensor, op);
}

void CountingCommunicator::broadcast(const at::Tensor& tensor, int root) {
  log_->add(record_of("broadcast", tensor));
  inner_->broadcast(tensor, root);
}

std::shared_ptr<comm::Communicator> CountingCommunicator::split(int color, int key) {
  return std::make_shared<CountingCommunicator>(inner_->split(color, key), log_);
}

}  // namespace narrowgauge::testing
