// Low-bit Adam on a GPU gives the CPU's bits: parameters, codes and scales.

#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <map>
#include <mutex>

#include "optim/low_bit_adam.h"
#include "tests/support/numerics.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::optim {
namespace {

using narrowgauge::testing::expect_bitwise_equal;
using narrowgauge::testing::run_ranks;

// Exchanges tensors of a GPU by way of the CPU: ranks that are threads share one GPU.
class StagedCommunicator : public comm::Communicator {
 public:
  explicit StagedCommunicator(comm::Communicator& cpu) : cpu_(cpu) {}
  int rank() const override { return cpu_.rank(); }
  int size() const override { return cpu_.size(); }
  void all_gather(const at::Tensor& output, const at::Tensor& input) override {
    const at::Tensor staged = output.cpu();
    cpu_.all_gather(staged, input.cpu());
    output.copy_(staged);
  }
  void reduce_scatter(const at::Tensor& output, const at::Tensor& input,
                      comm::ReduceOp op) override {
    const at::Tensor staged = output.cpu();
    cpu_.reduce_scatter(staged, input.cpu(), op);
    output.copy_(staged);
  }
  void all_reduce(const at::Tensor& tensor, comm::ReduceOp op) override {
    const at::Tensor staged = tensor.cpu();
    cpu_.all_reduce(staged, op);
    tensor.copy_(staged);
  }
  void broadcast(const at::Tensor& tensor, int root) override {
    const at::Tensor staged = tensor.cpu();
    cpu_.broadcast(staged, root);
    tensor.copy_(staged);
  }
  std::shared_ptr<comm::Communicator> split(int color, int key) override {
    return cpu_.split(color, key);
  }

 private:
  comm::Communicator& cpu_;
};

const std::vector<std::vector<int64_t>> kShapes = {{64, 96},  {10, 768}, {4352, 3}, {8192},
                                                   {40, 100}, {128, 77}, {5, 7},    {512, 1024}};

struct Case {
  StateFormat format;
  at::ScalarType dtype;
  bool decoupled;
};

// Rank `rank` of `size` on `device`: its parameters and states after four steps, by name.
std::map<std::string, at::Tensor> train(const Case& c, const std::vector<at::Tensor>& random,
                                        at::Device device, comm::Communicator& communicator) {
  ParameterGroup group;
  group.weight_decay = 0.1;
  std::vector<std::pair<int64_t, int64_t>> rows;
  for (size_t i = 0; i < kShapes.size(); ++i) {
    const int64_t chunk = (kShapes[i][0] + communicator.size() - 1) / communicator.size();
    const int64_t begin = std::min(kShapes[i][0], chunk * communicator.rank());
    rows.emplace_back(begin, std::min(kShapes[i][0], begin + chunk) - begin);
    group.names.push_back("p" + std::to_string(i));
    group.params.push_back(random[i]
                               .narrow(0, begin, rows[i].second)
                               .to(c.dtype)
                               .to(device, /*non_blocking=*/false, /*copy=*/true));
    group.shards.push_back({kShapes[i], begin});
  }
  LowBitAdamOptions options;
  options.state_format = c.format;
  options.adam.decoupled_weight_decay = c.decoupled;
  options.bf16_stochastic_round = true;
  const ParameterGroup kept = group;
  LowBitAdam optimizer({group}, options, &communicator);
  for (int step = 1; step <= 4; ++step) {
    for (size_t i = 0; i < kShapes.size(); ++i) {
      const at::Tensor& gradient = random[i + kShapes.size() * static_cast<size_t>(step)];
      kept.params[i].mutable_grad() =
          gradient.narrow(0, rows[i].first, rows[i].second).to(c.dtype).to(device);
    }
    optimizer.step(1e-2, 0.37);
  }
  std::map<std::string, at::Tensor> result;
  for (size_t i = 0; i < kShapes.size(); ++i) {
    result[kept.names[i]] = kept.params[i].cpu();
  }
  for (const StateTensor& state : optimizer.state()) {
    const bool is_fp8 = state.local.scalar_type() == at::kFloat8_e4m3fn;
    result[state.name] = (is_fp8 ? state.local.view(at::kByte) : state.local).cpu();
  }
  return result;
}

void expect_bits_of_the_cpu(const Case& c) {
  std::vector<at::Tensor> random;
  for (int step = 0; step <= 4; ++step) {
    for (const auto& shape : kShapes) {
      random.push_back(at::randn(shape).mul(step == 2 ? 1e-20 : 1.0));
    }
  }
  for (const int size : {1, 3}) {
    std::mutex one_at_a_time;
    run_ranks(size, [&](comm::Communicator& cpu) {
      const auto expected = train(c, random, at::kCPU, cpu);
      StagedCommunicator staged(cpu);
      const auto actual = train(c, random, {at::kCUDA, 0}, staged);
      const std::lock_guard<std::mutex> lock(one_at_a_time);
      ASSERT_EQ(actual.size(), expected.size());
      for (const auto& [name, tensor] : expected) {
        SCOPED_TRACE(name + " at rank " + std::to_string(cpu.rank()) + " of " +
                     std::to_string(size));
        expect_bitwise_equal(actual.at(name), tensor);
      }
    });
  }
}

TEST(LowBitAdamOnGpu, EightBits) {
  expect_bits_of_the_cpu({StateFormat::k8bit, at::kFloat, true});
  expect_bits_of_the_cpu({StateFormat::k8bit, at::kBFloat16, true});
}

TEST(LowBitAdamOnGpu, FourBits) {
  expect_bits_of_the_cpu({StateFormat::k4bit, at::kFloat, true});
  expect_bits_of_the_cpu({StateFormat::k4bit, at::kBFloat16, false});
}

TEST(LowBitAdamOnGpu, Fp8) {
  expect_bits_of_the_cpu({StateFormat::kFp8, at::kFloat, false});
  expect_bits_of_the_cpu({StateFormat::kFp8, at::kBFloat16, true});
}

TEST(LowBitAdamOnGpu, WholeStates) {
  expect_bits_of_the_cpu({StateFormat::kFloat32, at::kBFloat16, true});
  expect_bits_of_the_cpu({StateFormat::kBFloat16, at::kFloat, true});
}

}  // namespace
}  // namespace narrowgauge::optim
