#include "comm/nccl_communicator.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <chrono>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <thread>
#include <utility>

#include "comm/collective_arguments.h"
#include "comm/max_keys.h"

namespace narrowgauge::comm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::microseconds kPollInterval{50};
constexpr std::chrono::seconds kGoodbye{5};

cudaStream_t current_stream(c10::Device device) {
  return static_cast<cudaStream_t>(
      c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle());
}

ncclDataType_t reducible_type(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return ncclFloat64;
    case at::kFloat:
      return ncclFloat32;
    case at::kBFloat16:
      return ncclBfloat16;
    case at::kHalf:
      return ncclFloat16;
    case at::kLong:
      return ncclInt64;
    case at::kInt:
      return ncclInt32;
    default:
      TORCH_CHECK(false, "expected a dtype that NCCL reduces, got ", dtype);
  }
}

ncclRedOp_t operation(ReduceOp op, int size) {
  if (op == ReduceOp::kMax) {
    return ncclMax;
  }
  // The average of one rank is its own, which NCCL has got wrong before.
  return op == ReduceOp::kAvg && size > 1 ? ncclAvg : ncclSum;
}

// Rank 0's unique id, on every rank.
ncclUniqueId agree_on_id(const NcclLibrary& nccl, Communicator& bootstrap) {
  const at::Tensor bytes = at::zeros({NCCL_UNIQUE_ID_BYTES}, at::kByte);
  ncclUniqueId id{};
  if (bootstrap.rank() == 0) {
    const ncclResult_t result = nccl.get_unique_id(&id);
    if (result != ncclSuccess) {
      throw std::runtime_error(std::string("ncclGetUniqueId failed: ") +
                               nccl.get_error_string(result) + ": " + nccl.get_last_error(nullptr));
    }
    std::memcpy(bytes.mutable_data_ptr(), &id, sizeof id);
  }
  bootstrap.broadcast(bytes, 0);
  std::memcpy(&id, bytes.const_data_ptr(), sizeof id);
  return id;
}

ncclConfig_t asynchronous() {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  return config;
}

}  // namespace

std::shared_ptr<NcclCommunicator> NcclCommunicator::create(Communicator& bootstrap,
                                                           c10::Device device) {
  TORCH_CHECK(device.is_cuda() && device.has_index(),
              "NCCL: expected a CUDA device with its index, got ", device);
  TORCH_CHECK(c10::impl::hasDeviceGuardImpl(device.type()),
              "NCCL: expected libtorch's CUDA half to be loaded, got a process without it; select "
              "the device first");
  const int devices = c10::impl::VirtualGuardImpl(device.type()).deviceCount();
  TORCH_CHECK(device.index() < devices, "NCCL: expected one of this host's ", devices,
              " CUDA devices, got ", device, "; start at most as many ranks a host as it has GPUs");
  const std::shared_ptr<NcclCommunicator> made(new NcclCommunicator(NcclLibrary::load(), device));
  const ncclUniqueId id = agree_on_id(*made->nccl_, bootstrap);
  made->enqueue("ncclCommInitRankConfig", [&] {
    ncclConfig_t config = asynchronous();
    return made->nccl_->comm_init_rank_config(&made->comm_, bootstrap.size(), id, bootstrap.rank(),
                                              &config);
  });
  made->finish_init();
  return made;
}

NcclCommunicator::NcclCommunicator(std::shared_ptr<const NcclLibrary> nccl, c10::Device device)
    : nccl_(std::move(nccl)), device_(device), exceptions_at_birth_(std::uncaught_exceptions()) {}

void NcclCommunicator::finish_init() {
  const std::lock_guard lock(mutex_);
  check_usable();
  nccl_->comm_user_rank(comm_, &rank_);
  nccl_->comm_count(comm_, &size_);
}

NcclCommunicator::~NcclCommunicator() {
  const std::lock_guard lock(mutex_);
  if (comm_ == nullptr) {
    return;
  }
  const c10::DeviceGuard guard(device_);
  ncclResult_t state = ncclInternalError;
  if (std::uncaught_exceptions() == exceptions_at_birth_) {
    const Clock::time_point end = Clock::now() + kGoodbye;
    state = nccl_->comm_finalize(comm_);
    while (state == ncclInProgress && Clock::now() < end) {
      std::this_thread::sleep_for(kPollInterval);
      nccl_->comm_get_async_error(comm_, &state);
    }
  }
  if (state == ncclSuccess) {
    nccl_->comm_destroy(comm_);
  } else {
    nccl_->comm_abort(comm_);
  }
}

void NcclCommunicator::check_usable() const {
  if (!abort_cause_.empty()) {
    throw CommunicatorAborted(abort_cause_);
  }
}

std::string NcclCommunicator::text_of(ncclResult_t result) const {
  const char* details = nccl_->get_last_error(comm_);
  return std::string(nccl_->get_error_string(result)) +
         (details == nullptr || *details == '\0' ? "" : std::string(": ") + details);
}

template <typename Call>
void NcclCommunicator::enqueue(const char* name, const Call& call) {
  const c10::DeviceGuard guard(device_);
  ncclResult_t result = ncclSuccess;
  {
    const std::lock_guard lock(mutex_);
    check_usable();
    result = call();
  }
  wait_until_enqueued(result, name);
}

void NcclCommunicator::wait_until_enqueued(ncclResult_t result, const char* name) {
  while (result == ncclInProgress) {
    {
      const std::lock_guard lock(mutex_);
      check_usable();
      // A thread of NCCL's sets comm_ once it has made it.
      if (const ncclComm_t made = __atomic_load_n(&comm_, __ATOMIC_ACQUIRE)) {
        const ncclResult_t asked = nccl_->comm_get_async_error(made, &result);
        result = asked == ncclSuccess ? result : asked;
      }
    }
    if (result == ncclInProgress) {
      std::this_thread::sleep_for(kPollInterval);
    }
  }
  if (result != ncclSuccess) {
    throw std::runtime_error(std::string(name) + " failed: " + text_of(result));
  }
}

void NcclCommunicator::all_gather(const at::Tensor& output, const at::Tensor& input) {
  check_all_gather(output, input, rank_, size_, device_);
  enqueue("ncclAllGather", [&] {
    return nccl_->all_gather(input.const_data_ptr(), output.mutable_data_ptr(), input.nbytes(),
                             ncclInt8, comm_, current_stream(device_));
  });
}

void NcclCommunicator::reduce_scatter(const at::Tensor& output, const at::Tensor& input,
                                      ReduceOp op) {
  check_reduce_scatter(output, input, size_, device_);
  check_reduce_op(op, input.scalar_type());
  const bool by_key = op == ReduceOp::kMax && input.is_floating_point();
  const at::Tensor sent = by_key ? max_keys(input) : input;
  const at::Tensor received = by_key ? at::empty(output.sizes(), sent.options()) : output;
  enqueue("ncclReduceScatter", [&] {
    return nccl_->reduce_scatter(sent.const_data_ptr(), received.mutable_data_ptr(),
                                 received.numel(), reducible_type(sent.scalar_type()),
                                 operation(op, size_), comm_, current_stream(device_));
  });
  if (by_key) {
    output.copy_(from_max_keys(received, output.scalar_type()));
  }
}

void NcclCommunicator::all_reduce(const at::Tensor& tensor, ReduceOp op) {
  check_all_reduce(tensor, device_);
  check_reduce_op(op, tensor.scalar_type());
  const bool by_key = op == ReduceOp::kMax && tensor.is_floating_point();
  const at::Tensor reduced = by_key ? max_keys(tensor) : tensor;
  enqueue("ncclAllReduce", [&] {
    return nccl_->all_reduce(reduced.const_data_ptr(), reduced.mutable_data_ptr(), reduced.numel(),
                             reducible_type(reduced.scalar_type()), operation(op, size_), comm_,
                             current_stream(device_));
  });
  if (by_key) {
    tensor.copy_(from_max_keys(reduced, tensor.scalar_type()));
  }
}

void NcclCommunicator::broadcast(const at::Tensor& tensor, int root) {
  check_broadcast(tensor, root, size_, device_);
  enqueue("ncclBroadcast", [&] {
    return nccl_->broadcast(tensor.const_data_ptr(), tensor.mutable_data_ptr(), tensor.nbytes(),
                            ncclInt8, root, comm_, current_stream(device_));
  });
}

std::shared_ptr<Communicator> NcclCommunicator::split(int color, int key) {
  check_split(color);
  const std::shared_ptr<NcclCommunicator> part(new NcclCommunicator(nccl_, device_));
  enqueue("ncclCommSplit", [&] {
    ncclConfig_t config = asynchronous();
    return nccl_->comm_split(comm_, color, key, &part->comm_, &config);
  });
  part->wait_until_enqueued(ncclInProgress, "ncclCommSplit");
  part->finish_init();
  const std::lock_guard lock(mutex_);
  parts_.push_back(part);
  return part;
}

std::optional<std::string> NcclCommunicator::error() {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock.owns_lock() || comm_ == nullptr) {
    return std::nullopt;
  }
  for (const auto& each : parts_) {
    const auto part = each.lock();
    if (auto error = part == nullptr ? std::nullopt : part->error()) {
      return error;
    }
  }
  ncclResult_t state = ncclSuccess;
  nccl_->comm_get_async_error(comm_, &state);
  if (state == ncclSuccess || state == ncclInProgress) {
    return std::nullopt;
  }
  return "NCCL, rank " + std::to_string(rank_) + " of " + std::to_string(size_) + ": " +
         text_of(state);
}

void NcclCommunicator::abort(const std::string& cause) {
  const std::lock_guard lock(mutex_);
  if (!abort_cause_.empty()) {
    return;
  }
  abort_cause_ = cause;
  if (comm_ != nullptr) {
    const c10::DeviceGuard guard(device_);
    nccl_->comm_abort(std::exchange(comm_, nullptr));
  }
}

}  // namespace narrowgauge::comm
