// NCCL on every GPU of this host, a thread a rank; with one GPU, a world of one rank. Every case of
// the CPU's communicators runs, and what only a device has: streams, the watchdog's view of what is
// enqueued, abort.

#include <ATen/Context.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "comm/collective_arguments.h"
#include "comm/cuda_stream.h"
#include "comm/nccl_communicator.h"
#include "comm/self_communicator.h"
#include "comm/watched_communicator.h"
#include "tests/comm/communicator_cases.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::comm {
namespace {

int num_gpus() { return c10::impl::VirtualGuardImpl(c10::kCUDA).deviceCount(); }

void synchronize(c10::Device device) {
  c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
}

using Body = std::function<void(std::shared_ptr<NcclCommunicator>, c10::Device)>;

// Runs `body` on a rank for each GPU.
void on_all_gpus(const Body& body) {
  narrowgauge::testing::run_ranks(num_gpus(), [&](Communicator& bootstrap) {
    const c10::Device device(c10::kCUDA, static_cast<c10::DeviceIndex>(bootstrap.rank()));
    const c10::DeviceGuard guard(device);
    body(NcclCommunicator::create(bootstrap, device), device);
  });
}

// Lets the cases for the CPU run on a device: tensors are copied there and back.
class OnDevice final : public Communicator {
 public:
  OnDevice(std::shared_ptr<Communicator> inner, c10::Device device)
      : inner_(std::move(inner)), device_(device) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }

  void all_gather(const at::Tensor& output, const at::Tensor& input) override {
    const at::Tensor there = output.to(device_);
    const bool in_place = gathers_in_place(output, input, rank());
    inner_->all_gather(there,
                       in_place ? there.view({-1}).narrow(0, rank() * input.numel(), input.numel())
                                : input.to(device_));
    output.copy_(there);
  }

  void reduce_scatter(const at::Tensor& output, const at::Tensor& input, ReduceOp op) override {
    const at::Tensor there = output.to(device_);
    inner_->reduce_scatter(there, input.to(device_), op);
    output.copy_(there);
  }

  void all_reduce(const at::Tensor& tensor, ReduceOp op) override {
    const at::Tensor there = tensor.to(device_);
    inner_->all_reduce(there, op);
    tensor.copy_(there);
  }

  void broadcast(const at::Tensor& tensor, int root) override {
    const at::Tensor there = tensor.to(device_);
    inner_->broadcast(there, root);
    tensor.copy_(there);
  }

  std::shared_ptr<Communicator> split(int color, int key) override {
    return std::make_shared<OnDevice>(inner_->split(color, key), device_);
  }

 private:
  std::shared_ptr<Communicator> inner_;
  c10::Device device_;
};

class NcclCases : public ::testing::TestWithParam<CommunicatorCase> {};

TEST_P(NcclCases, HoldOnTheDevice) {
  const std::string name = GetParam().name;
  on_all_gpus([&](std::shared_ptr<NcclCommunicator> nccl, c10::Device device) {
    // NCCL sums more than two ranks in an order of its own: SumsAreCloseOnManyRanks looks at those.
    if (nccl->size() <= 2 ||
        (name != "ReductionsSumInRankOrder" && name != "NarrowFloatsAreRoundedOnce")) {
      OnDevice communicator(nccl, device);
      GetParam().run(communicator);
    }
  });
}

// Wrong arguments are looked at below: a copy to the device would mend some of them.
std::vector<CommunicatorCase> cases_of_devices() {
  std::vector<CommunicatorCase> cases;
  for (const CommunicatorCase& each : communicator_cases()) {
    if (std::string(each.name) != "WrongArgumentsThrow") {
      cases.push_back(each);
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Communicator, NcclCases, ::testing::ValuesIn(cases_of_devices()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(NcclCommunicator, SumsAreCloseOnManyRanks) {
  on_all_gpus([](std::shared_ptr<NcclCommunicator> nccl, c10::Device device) {
    for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
      for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kAvg}) {
        const at::Tensor x =
            at::arange(5000, at::TensorOptions(device).dtype(at::kDouble)).sin().abs().add(0.5);
        const at::Tensor mine = x.mul(1 + nccl->rank()).to(dtype);
        nccl->all_reduce(mine, op);
        const double ranks = nccl->size();
        const double factor = op == ReduceOp::kSum ? ranks * (ranks + 1) / 2 : (ranks + 1) / 2;
        const double unit = dtype == at::kDouble  ? 1e-15
                            : dtype == at::kFloat ? 6e-8
                            : dtype == at::kHalf  ? 4.9e-4
                                                  : 3.9e-3;
        // One rounding of the input, one at each rank, one of the result; all terms are positive.
        const double worst =
            mine.to(at::kDouble).sub(x.mul(factor)).div(x.mul(factor)).abs().max().item<double>();
        EXPECT_LE(worst, (ranks + 2) * unit) << dtype;
      }
    }
  });
}

TEST(NcclCommunicator, WrongArgumentsThrow) {
  on_all_gpus([](std::shared_ptr<NcclCommunicator> nccl, c10::Device device) {
    const int size = nccl->size();
    const at::TensorOptions there(device);
    const at::Tensor floats = at::zeros({4}, there);
    EXPECT_THROW(nccl->all_gather(at::zeros({4 * size + 1}, there), floats), c10::Error);
    EXPECT_THROW(nccl->all_gather(at::zeros({4 * size}), floats), c10::Error);
    EXPECT_THROW(nccl->all_reduce(at::zeros({4}), ReduceOp::kSum), c10::Error);
    EXPECT_THROW(nccl->all_reduce(at::Tensor(), ReduceOp::kSum), c10::Error);
    EXPECT_THROW(nccl->all_reduce(at::zeros({4}, there.dtype(at::kFloat8_e4m3fn)), ReduceOp::kMax),
                 c10::Error);
    EXPECT_THROW(nccl->all_reduce(at::zeros({4}, there.dtype(at::kInt)), ReduceOp::kAvg),
                 c10::Error);
    EXPECT_THROW(nccl->broadcast(floats, size), c10::Error);
    EXPECT_THROW(nccl->split(-1, 0), c10::Error);
    nccl->all_reduce(floats, ReduceOp::kSum);  // still usable
    EXPECT_EQ(floats.sum().item<float>(), 0.0F);
  });
}

TEST(NcclCommunicator, SaysThatThereAreTooManyRanks) {
  SelfCommunicator alone;
  try {
    NcclCommunicator::create(alone, c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(100)));
    ADD_FAILURE() << "expected an error";
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find("as many ranks a host as it has GPUs"),
              std::string::npos);
  }
}

TEST(NcclCommunicator, RunsOnTheCurrentStreamInOrder) {
  on_all_gpus([](std::shared_ptr<NcclCommunicator> nccl, c10::Device device) {
    CudaStream stream(device);
    const at::TensorOptions there(device);
    at::Tensor x = at::rand({2048, 2048}, there);
    for (int i = 0; i < 20; ++i) {
      x = x.matmul(x).div_(2048);  // keeps the caller's stream busy before the collective
    }
    const at::Tensor input = x.select(0, 0).clone();
    const at::Tensor output = at::full({nccl->size() * 2048}, NAN, there);
    const auto work = stream.run([&] { nccl->all_gather(output, input); });
    work->wait();
    const at::Tensor mine = output.narrow(0, nccl->rank() * 2048, 2048);
    EXPECT_TRUE(mine.equal(input));
    EXPECT_TRUE(output.isfinite().all().item<bool>());
    EXPECT_THROW(stream.run([] { throw std::runtime_error("of the piece"); })->wait(),
                 std::runtime_error);
  });
}

TEST(NcclCommunicator, TheRecordEndsWhenTheDeviceHas) {
  on_all_gpus([](std::shared_ptr<NcclCommunicator> nccl, c10::Device device) {
    const auto record = std::make_shared<FlightRecord>();
    WatchedCommunicator watched(nccl, record, "world", "world");
    const at::Tensor x = at::ones({1 << 20}, at::TensorOptions(device));
    watched.all_reduce(x, ReduceOp::kSum);
    synchronize(device);
    record->poll();
    EXPECT_FALSE(record->oldest_pending().has_value());
    EXPECT_EQ(record->progress().at(0).finished, 1);
    EXPECT_EQ(nccl->error(), std::nullopt);
  });
}

TEST(NcclCommunicator, AbortEndsWhatWaitsForALateRank) {
  on_all_gpus([](std::shared_ptr<NcclCommunicator> nccl, c10::Device device) {
    const at::Tensor x = at::ones({1024}, at::TensorOptions(device));
    nccl->all_reduce(x, ReduceOp::kSum);
    synchronize(device);
    // The last rank never comes; the others' kernels wait until they are aborted.
    if (nccl->rank() != nccl->size() - 1) {
      nccl->all_reduce(x, ReduceOp::kSum);
    }
    std::thread([&] { nccl->abort("the cause"); }).join();
    synchronize(device);
    try {
      nccl->all_reduce(x, ReduceOp::kSum);
      ADD_FAILURE() << "expected CommunicatorAborted";
    } catch (const CommunicatorAborted& error) {
      EXPECT_STREQ(error.what(), "the cause");
    }
    EXPECT_EQ(nccl->error(), std::nullopt);
    nccl->abort("again");
  });
}

}  // namespace
}  // namespace narrowgauge::comm
