#pragma once

#include <ATen/core/Tensor.h>

#include "optim/codebook.h"

namespace narrowgauge::optim {

// A codebook whose tables are where the kernels of a device read them.
class CodebookOnDevice {
 public:
  CodebookOnDevice(Codebook codebook, at::Device device);

  // Valid while this object lives, which may be moved.
  const kernels::CodebookTable& table() const { return table_; }

 private:
  Codebook codebook_;
  at::Tensor values_;  // undefined on the CPU, where the codebook's own are used
  at::Tensor cells_;
  kernels::CodebookTable table_;
};

}  // namespace narrowgauge::optim
