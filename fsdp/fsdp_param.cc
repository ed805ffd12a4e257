#include "fsdp/fsdp_param.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <utility>

namespace narrowgauge::fsdp {
namespace {

// Tensors that alias the storage stay valid; they see 0 bytes until it is allocated again.
void free_storage(const at::Tensor& tensor) {
  const c10::Storage& storage = tensor.storage();
  storage.set_data_ptr_noswap(storage.allocator()->allocate(0));
  storage.set_nbytes(0);
}

void allocate_storage(const at::Tensor& tensor) {
  const c10::Storage& storage = tensor.storage();
  storage.set_data_ptr_noswap(storage.allocator()->allocate(tensor.nbytes()));
  storage.set_nbytes(tensor.nbytes());
}

std::vector<int64_t> with_rows(std::vector<int64_t> sizes, int64_t rows) {
  sizes[0] = rows;
  return sizes;
}

}  // namespace

FSDPParam::FSDPParam(std::string fqn, std::vector<Owner> owners, const at::Tensor& original,
                     const comm::DeviceMesh& mesh, const FullyShardOptions& options,
                     std::unique_ptr<ParamExtension> extension)
    : fqn_(std::move(fqn)),
      owners_(std::move(owners)),
      original_(original.getIntrusivePtr()),
      global_sizes_(original.sizes().vec()),
      num_shards_(mesh.shard_axis().size()),
      requires_grad_(original.requires_grad()),
      param_dtype_(original.is_floating_point()
                       ? options.mp_policy.param_dtype.value_or(original.scalar_type())
                       : original.scalar_type()),
      offload_policy_(options.offload_policy),
      extension_(std::move(extension)) {
  TORCH_CHECK(original.dim() > 0 && original.numel() > 0,
              "expected parameters of at least one dimension and one element, got '", fqn_,
              "' of sizes ", original.sizes(), "; give it the shape [1]");
  TORCH_CHECK(original.is_contiguous(), "expected contiguous parameters, got '", fqn_,
              "' with strides ", original.strides(), "; replace it by its contiguous()");
  const c10::NoGradGuard no_grad;
  rows_ = row_range(global_sizes_[0], num_shards_, mesh.shard_axis().rank());
  const auto options_of_shard = sharded_options(original, original.device());
  if (num_shards_ == 1 && options_of_shard.device() == original.device()) {
    set_sharded(original.detach());
  } else {
    const auto padded = with_rows(global_sizes_, padded_rows(global_sizes_[0], num_shards_));
    const at::Tensor buffer = at::zeros(padded, options_of_shard);
    if (!original.is_meta()) {
      buffer.narrow(0, 0, rows_.size).copy_(original.narrow(0, rows_.begin, rows_.size));
    }
    set_sharded(buffer);
  }
  make_unsharded(original.device());
}

at::TensorOptions FSDPParam::sharded_options(const at::Tensor& like,
                                             const at::Device& device) const {
  const auto options = like.options().requires_grad(false);
  if (!offload_policy_ || device.is_meta()) {
    return options.device(device);
  }
  return options.device(at::kCPU).pinned_memory(offload_policy_->pin_memory && !device.is_cpu());
}

bool FSDPParam::is_original(const at::Tensor& parameter) const {
  // The weak pointer keeps the address from being used again, so equality is identity.
  return original_._unsafe_get_target() == parameter.unsafeGetTensorImpl();
}

void FSDPParam::materialize(const at::Device& device) {
  const c10::NoGradGuard no_grad;
  set_sharded(at::zeros(sharded_buffer_.sizes(), sharded_options(sharded_buffer_, device)));
  make_unsharded(device);
}

bool FSDPParam::is_stale() const {
  return changed_ || gathered_version_ != static_cast<int64_t>(sharded_param_._version());
}

void FSDPParam::set_sharded(at::Tensor buffer) {
  sharded_buffer_ = std::move(buffer);
  sharded_param_ = sharded_buffer_.narrow(0, 0, rows_.size).detach();
  sharded_param_.set_requires_grad(requires_grad_);
  changed_ = true;
}

void FSDPParam::make_unsharded(const at::Device& device) {
  if (num_shards_ == 1 && !extension_ && param_dtype_ == sharded_param_.scalar_type() &&
      device == sharded_param_.device()) {
    unsharded_param_ = sharded_param_.detach();
  } else {
    unsharded_buffer_ = at::empty(with_rows(global_sizes_, num_shards_ * sharded_buffer_.size(0)),
                                  at::TensorOptions().dtype(param_dtype_).device(device));
    // variable_data gives it a version counter of its own: filling the buffer again is no in-place
    // change to autograd, which holds the same values as before.
    unsharded_param_ = unsharded_buffer_.narrow(0, 0, global_sizes_[0]).variable_data();
    if ((num_shards_ > 1 || extension_) && !is_meta()) {
      free_storage(unsharded_buffer_);
    }
  }
  unsharded_param_.set_requires_grad(requires_grad_);
  for (const Owner& owner : owners_) {
    owner.layer->replace_parameter(owner.name, unsharded_param_);
  }
}

void FSDPParam::append_all_gather_inputs(std::vector<AllGatherInput>& inputs) {
  if (post_forward_shard_.defined()) {
    inputs.push_back({post_forward_shard_, param_dtype_});
    return;
  }
  changed_ = false;
  gathered_version_ = static_cast<int64_t>(sharded_param_._version());
  if (!extension_) {
    inputs.push_back({sharded_buffer_, param_dtype_});
    return;
  }
  for (at::Tensor& tensor : extension_->pre_all_gather(sharded_buffer_.to(device()))) {
    inputs.push_back({tensor, tensor.scalar_type()});
  }
}

std::vector<at::Tensor> FSDPParam::all_gather_outputs(const AllGatherInput* inputs,
                                                      size_t num_inputs, int64_t num_ranks) {
  if (!extension_) {
    allocate_storage(unsharded_buffer_);
    return {unsharded_buffer_};
  }
  std::vector<at::Tensor> outputs;
  for (size_t i = 0; i < num_inputs; ++i) {
    std::vector<int64_t> sizes = inputs[i].tensor.sizes().vec();
    sizes.insert(sizes.begin(), num_ranks);
    outputs.push_back(
        at::empty(sizes, at::TensorOptions().dtype(inputs[i].dtype).device(device())));
  }
  return outputs;
}

void FSDPParam::finish_unshard(std::vector<at::Tensor> outputs) {
  post_forward_shard_.reset();
  if (extension_) {
    extension_->post_all_gather(std::move(outputs));
  }
}

void FSDPParam::reshard() {
  post_forward_shard_.reset();
  if (extension_) {
    extension_->release();
  } else {
    free_storage(unsharded_buffer_);
  }
}

void FSDPParam::reshard_post_forward(int64_t index, int64_t size) {
  const c10::NoGradGuard no_grad;
  const int64_t rows = unsharded_buffer_.size(0) / size;
  post_forward_shard_ = unsharded_buffer_.narrow(0, index * rows, rows).clone();
  free_storage(unsharded_buffer_);
}

void FSDPParam::refresh_if_changed() {
  if (!unsharded_buffer_.defined() || !is_stale()) {
    return;
  }
  if (extension_) {
    std::vector<at::Tensor> outputs;
    for (const at::Tensor& input : extension_->pre_all_gather(sharded_buffer_.to(device()))) {
      outputs.push_back(input.unsqueeze(0));
    }
    extension_->post_all_gather(std::move(outputs));
  } else {
    unsharded_buffer_.copy_(sharded_buffer_);
  }
  changed_ = false;
  gathered_version_ = static_cast<int64_t>(sharded_param_._version());
}

bool FSDPParam::has_unsharded_grad() const {
  return unsharded_param_.grad().defined() || accumulated_grad_.defined();
}

void FSDPParam::accumulate_unsharded_grad(at::ScalarType dtype) {
  at::Tensor& grad = unsharded_param_.mutable_grad();
  if (!grad.defined()) {
    return;
  }
  if (accumulated_grad_.defined()) {
    accumulated_grad_.add_(grad);
  } else {
    accumulated_grad_ = grad.to(dtype);
  }
  grad.reset();
}

at::Tensor FSDPParam::take_unsharded_grad() {
  at::Tensor fresh = std::move(unsharded_param_.mutable_grad());
  unsharded_param_.mutable_grad().reset();
  if (!accumulated_grad_.defined()) {
    return fresh;
  }
  at::Tensor accumulated = std::move(accumulated_grad_);
  accumulated_grad_.reset();
  return fresh.defined() ? accumulated.add_(fresh) : accumulated;
}

void FSDPParam::add_sharded_grad(const at::Tensor& grad) {
  at::Tensor& sharded_grad = sharded_param_.mutable_grad();
  // A GPU's optimizers read a narrower gradient as it is: widening it would cost more memory and
  // traffic than the sum of several needs.
  const bool stays_narrow = !grad.is_cpu() && grad.device() == sharded_param_.device() &&
                            grad.element_size() < sharded_param_.element_size();
  if (sharded_grad.defined()) {
    sharded_grad = sharded_grad.to(sharded_param_.scalar_type()).add_(grad);
  } else if (stays_narrow) {
    sharded_grad = grad.contiguous();
  } else {
    sharded_grad = grad.to(sharded_param_.options()).contiguous();
  }
  if (hook_) {
    hook_(sharded_param_);
    mark_changed();
  }
}

}  // namespace narrowgauge::fsdp
