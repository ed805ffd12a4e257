#include "optim/codebook_on_device.h"

#include <ATen/ops/from_blob.h>

#include <utility>

namespace narrowgauge::optim {

CodebookOnDevice::CodebookOnDevice(Codebook codebook, at::Device device)
    : codebook_(std::move(codebook)), table_(codebook_.table()) {
  if (device.is_cpu()) {
    return;
  }
  const int64_t num_cells = 2 * (table_.last_cell - table_.first_cell + 1);
  // from_blob takes no const data; the copy only reads it.
  values_ = at::from_blob(const_cast<float*>(table_.values), {256}, at::kFloat).to(device);
  cells_ = at::from_blob(const_cast<uint32_t*>(table_.cells), {num_cells}, at::kInt).to(device);
  table_.values = values_.const_data_ptr<float>();
  table_.cells = static_cast<const uint32_t*>(cells_.const_data_ptr());
  table_.planes = nullptr;
  table_.lines = nullptr;
}

}  // namespace narrowgauge::optim
