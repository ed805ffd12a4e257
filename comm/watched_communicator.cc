#include "comm/watched_communicator.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <functional>
#include <utility>

namespace narrowgauge::comm {
namespace {

// Tells whether the device has done all that is on its current stream by now.
std::function<bool()> device_arrival(c10::Device device) {
  const auto event = std::make_shared<c10::Event>(device.type());
  event->record(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
  // The watchdog's thread has no device of its own; asking without would open the first one's.
  return [event, device] {
    const c10::DeviceGuard guard(device);
    return event->query();
  };
}

}  // namespace

WatchedCommunicator::WatchedCommunicator(std::shared_ptr<Communicator> inner,
                                         std::shared_ptr<FlightRecord> record,
                                         const std::string& id, const std::string& name)
    : inner_(std::move(inner)), record_(std::move(record)), id_(id), name_(name) {
  record_->name_group(id_, name_, size());
}

void WatchedCommunicator::set_name(const std::string& name) {
  name_ = name;
  record_->name_group(id_, name_, size());
}

// A collective that throws has ended: no rank waits in it any more.
template <typename Collective>
void WatchedCommunicator::watch(const char* operation, const at::Tensor& larger,
                                const Collective& collective) {
  const bool sized = larger.defined();
  const int64_t ticket = record_->start(id_, operation, sized ? larger.scalar_type() : at::kByte,
                                        sized ? static_cast<int64_t>(larger.nbytes()) : 0);
  try {
    collective();
  } catch (...) {
    record_->finish(ticket);
    throw;
  }
  if (sized && !larger.is_cpu()) {
    record_->finish_when(ticket, device_arrival(larger.device()));
  } else {
    record_->finish(ticket);
  }
}

void WatchedCommunicator::all_gather(const at::Tensor& output, const at::Tensor& input) {
  watch("all_gather", output, [&] { inner_->all_gather(output, input); });
}

void WatchedCommunicator::reduce_scatter(const at::Tensor& output, const at::Tensor& input,
                                         ReduceOp op) {
  watch("reduce_scatter", input, [&] { inner_->reduce_scatter(output, input, op); });
}

void WatchedCommunicator::all_reduce(const at::Tensor& tensor, ReduceOp op) {
  watch("all_reduce", tensor, [&] { inner_->all_reduce(tensor, op); });
}

void WatchedCommunicator::broadcast(const at::Tensor& tensor, int root) {
  watch("broadcast", tensor, [&] { inner_->broadcast(tensor, root); });
}

std::shared_ptr<Communicator> WatchedCommunicator::split(int color, int key) {
  const std::string part = std::to_string(splits_++) + ":" + std::to_string(color);
  std::shared_ptr<Communicator> inner;
  watch("split", at::Tensor(), [&] { inner = inner_->split(color, key); });
  return std::make_shared<WatchedCommunicator>(std::move(inner), record_, id_ + "/" + part,
                                               name_ + "/" + part);
}

void set_group_name(Communicator& communicator, const std::string& name) {
  if (auto* watched = dynamic_cast<WatchedCommunicator*>(&communicator)) {
    watched->set_name(name);
  }
}

}  // namespace narrowgauge::comm
