#include "optim/cpu_offload.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <optional>
#include <utility>

namespace narrowgauge::optim {
namespace {

// Of the CPU; pinned if copies to and from `device` are to run beside the CPU.
at::Tensor host_like(const at::Tensor& tensor, at::Device device) {
  const at::TensorOptions options = at::TensorOptions().dtype(tensor.scalar_type());
  return at::empty(tensor.sizes(), options.pinned_memory(!device.is_cpu() && tensor.numel() > 0));
}

}  // namespace

// A stream of the device for copies; on the CPU copies run at once and nothing is waited for.
class CpuOffload::CopyStream {
 public:
  explicit CopyStream(at::Device device) : device_(device) {
    if (!device.is_cpu()) {
      guard_.emplace(device.type());
      stream_.emplace(guard_->getStreamFromGlobalPool(device, /*isHighPriority=*/false));
    }
  }

  // What follows on the copy stream comes after all that the current stream has so far.
  void wait_for_current() const {
    if (stream_) {
      c10::Event event(device_.type());
      event.record(guard_->getStream(device_));
      event.block(*stream_);
    }
  }

  void make_current_wait() const {
    if (stream_) {
      c10::Event event(device_.type());
      event.record(*stream_);
      event.block(guard_->getStream(device_));
    }
  }

  void copy(const at::Tensor& to, const at::Tensor& from) const {
    if (stream_) {
      const c10::StreamGuard on_stream(*stream_);
      to.copy_(from, /*non_blocking=*/true);
    } else {
      to.copy_(from);
    }
  }

  // A copy that the host can wait for.
  std::optional<c10::Event> copy_with_event(const at::Tensor& to, const at::Tensor& from) const {
    copy(to, from);
    if (!stream_) {
      return std::nullopt;
    }
    std::optional<c10::Event> event(std::in_place, device_.type());
    event->record(*stream_);
    return event;
  }

  void synchronize() const {
    if (stream_) {
      stream_->synchronize();
    }
  }

 private:
  at::Device device_;
  std::optional<c10::impl::VirtualGuardImpl> guard_;
  std::optional<c10::Stream> stream_;
};

CpuOffload::CpuOffload(std::vector<ParameterGroup> groups, const MakeOptimizer& make_optimizer) {
  const at::NoGradGuard no_grad;
  at::Device device = at::kCPU;
  for (GroupedParameter& parameter : flatten(std::move(groups))) {
    TORCH_CHECK(slots_.empty() || parameter.param.device() == device, "expected all parameters on ",
                device, ", got '", parameter.name, "' on ", parameter.param.device());
    device = parameter.param.device();
    Slot slot;
    slot.param = parameter.param;
    slot.host_param = host_like(parameter.param, device);
    slot.optimizer = make_optimizer({{parameter.name},
                                     {slot.host_param},
                                     parameter.lr_scale,
                                     parameter.weight_decay,
                                     {parameter.shard}});
    slots_.push_back(std::move(slot));
  }
  copies_ = std::make_unique<CopyStream>(device);
}

CpuOffload::~CpuOffload() { copies_->synchronize(); }

void CpuOffload::refresh(Slot& slot) const {
  // A checkpoint, say, has been loaded into the parameter.
  if (slot.version != static_cast<int64_t>(slot.param._version())) {
    slot.host_param.copy_(slot.param.detach());
    slot.version = static_cast<int64_t>(slot.param._version());
  }
}

void CpuOffload::step(double lr, double gradient_scale) {
  const at::NoGradGuard no_grad;
  ++step_count_;
  // What the last step copied back has arrived: host_param may be written again.
  copies_->synchronize();
  copies_->wait_for_current();
  std::vector<std::optional<c10::Event>> arrivals(slots_.size());
  for (size_t i = 0; i < slots_.size(); ++i) {
    Slot& slot = slots_[i];
    refresh(slot);
    const at::Tensor& gradient = slot.param.grad();
    if (!gradient.defined()) {
      slot.host_param.mutable_grad() = at::Tensor();
      continue;
    }
    if (!slot.host_gradient.defined() ||
        slot.host_gradient.scalar_type() != gradient.scalar_type()) {
      slot.host_gradient = host_like(gradient, gradient.device());
    }
    arrivals[i] = copies_->copy_with_event(slot.host_gradient, gradient);
    slot.host_param.mutable_grad() = slot.host_gradient;
  }
  for (size_t i = 0; i < slots_.size(); ++i) {
    Slot& slot = slots_[i];
    if (arrivals[i]) {
      arrivals[i]->synchronize();
    }
    // Also without a gradient: steps are counted, and may be collective.
    slot.optimizer->step(lr, gradient_scale);
    if (slot.param.grad().defined()) {
      copies_->copy(slot.param.detach(), slot.host_param.detach());
      slot.version = static_cast<int64_t>(slot.param._version());
    }
  }
  copies_->make_current_wait();
}

bool CpuOffload::communicates() const {
  return std::any_of(slots_.begin(), slots_.end(),
                     [](const Slot& slot) { return slot.optimizer->communicates(); });
}

void CpuOffload::zero_grad() {
  for (Slot& slot : slots_) {
    slot.param.mutable_grad() = at::Tensor();
  }
}

std::vector<StateTensor> CpuOffload::state() {
  std::vector<StateTensor> all;
  for (const Slot& slot : slots_) {
    for (StateTensor& state : slot.optimizer->state()) {
      all.push_back(std::move(state));
    }
  }
  return all;
}

void CpuOffload::set_step_count(int64_t count) {
  for (const Slot& slot : slots_) {
    slot.optimizer->set_step_count(count);
  }
  step_count_ = count;
}

}  // namespace narrowgauge::optim
