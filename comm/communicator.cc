#include "comm/communicator.h"

#include <ATen/ops/zeros.h>

namespace narrowgauge::comm {

void barrier(Communicator& communicator) {
  communicator.all_reduce(at::zeros({1}, at::kInt), ReduceOp::kSum);
}

}  // namespace narrowgauge::comm
