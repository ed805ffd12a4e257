#include "optim/block_exchange.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <map>
#include <utility>

namespace narrowgauge::optim {

BlockExchange::BlockExchange(comm::Communicator* shard_axis, std::span<const BlockLayout> layouts,
                             at::Device device, at::Device comm_device)
    : shard_axis_(shard_axis), comm_device_(comm_device), slots_(layouts.size()) {
  if (!shard_axis_ || shard_axis_->size() == 1 || layouts.empty()) {
    return;
  }
  const auto num_parameters = static_cast<int64_t>(layouts.size());
  const at::Tensor mine = at::empty({num_parameters, 2}, at::kLong);
  auto* extent = mine.mutable_data_ptr<int64_t>();
  for (const BlockLayout& layout : layouts) {
    *extent++ = layout.first_element;
    *extent++ = layout.num_elements;
  }
  const at::Tensor gathered = at::empty({shard_axis_->size(), num_parameters, 2},
                                        at::TensorOptions().dtype(at::kLong).device(comm_device));
  shard_axis_->all_gather(gathered, mine.to(comm_device));
  const at::Tensor all = gathered.cpu();
  std::map<std::pair<size_t, int64_t>, int64_t> slot_of;  // (parameter, block of the whole)
  const auto* extents = all.const_data_ptr<int64_t>();
  for (int rank = 0; rank < shard_axis_->size(); ++rank) {
    for (size_t i = 0; i < layouts.size(); ++i, extents += 2) {
      const int64_t block_size = layouts[i].block_size;
      if (extents[1] > 0 && extents[0] % block_size != 0) {
        slot_of.try_emplace({i, extents[0] / block_size}, static_cast<int64_t>(slot_of.size()));
      }
    }
  }
  num_slots_ = static_cast<int64_t>(slot_of.size());
  words_ = at::zeros({num_slots_, 2}, at::TensorOptions().dtype(at::kInt).device(device));
  for (size_t i = 0; i < layouts.size(); ++i) {
    const BlockLayout& layout = layouts[i];
    if (layout.shares_first()) {
      slots_[i].first = slot_of.at({i, layout.first_block()});
    }
    if (layout.shares_last()) {
      slots_[i].last = slot_of.at({i, layout.end_element() / layout.block_size});
    }
  }
}

void BlockExchange::clear() { words_.zero_(); }

void BlockExchange::put(int64_t slot, kernels::MomentMaxima maxima) {
  auto* words = words_.mutable_data_ptr<int32_t>() + 2 * slot;
  words[0] = static_cast<int32_t>(maxima.exp_avg);
  words[1] = static_cast<int32_t>(maxima.exp_avg_sq);
}

void BlockExchange::reduce() {
  const at::Tensor words = words_.to(comm_device_);  // itself if it is there
  shard_axis_->all_reduce(words, comm::ReduceOp::kMax);
  if (!words.is_same(words_)) {
    words_.copy_(words);
  }
}

kernels::MomentMaxima BlockExchange::get(int64_t slot) const {
  const auto* words = words_.const_data_ptr<int32_t>() + 2 * slot;
  return {static_cast<uint32_t>(words[0]), static_cast<uint32_t>(words[1])};
}

}  // namespace narrowgauge::optim
