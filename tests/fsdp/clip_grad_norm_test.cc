#include "fsdp/clip_grad_norm.h"

#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "nn/linear.h"
#include "tests/fsdp/toy_model.h"
#include "tests/support/counting_communicator.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::fsdp {
namespace {

using narrowgauge::testing::CollectiveLog;
using narrowgauge::testing::CountingCommunicator;
using narrowgauge::testing::run_ranks_shared;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Sums of about 500 fp32 terms, taken in different orders.
constexpr double kTolerance = 500 * 6e-8;

// All gradients of the whole toy model in fp64.
double reference_norm(const ToyModel& model, double norm_type) {
  double total = 0;
  for (const auto& parameter : model.named_parameters()) {
    const at::Tensor grad = parameter.value().grad().to(at::kDouble).abs();
    if (std::isinf(norm_type)) {
      total = std::max(total, grad.max().item<double>());
    } else {
      total += grad.pow(norm_type).sum().item<double>();
    }
  }
  return std::isinf(norm_type) ? total : std::pow(total, 1.0 / norm_type);
}

TEST(ClipGradNorm, EqualsOneProcessForEveryNormAndMesh) {
  const ToyBatch batch = toy_batch({}, 0, 12);
  const auto reference = make_reference_toy({});
  reference->loss_sum(batch.tokens, batch.targets).backward();
  for (const double norm_type : {1.0, 2.0, 3.0, kInfinity}) {
    const double expected = reference_norm(*reference, norm_type);
    const double max_norm = expected / 3;
    for (const auto& [replicate, shard] : {std::pair(1, 1), {1, 2}, {1, 4}, {2, 2}, {3, 1}}) {
      run_ranks_shared(replicate * shard, [&](auto world) {
        const auto log = std::make_shared<CollectiveLog>();
        const comm::DeviceMesh mesh(std::make_shared<CountingCommunicator>(world, log), replicate,
                                    shard);
        const auto model = make_sharded_toy({}, mesh, {});
        const ToyBatch mine = slice_of_rank(batch, world->rank(), world->size());
        model->loss_sum(mine.tokens, mine.targets).backward();
        log->clear();
        const auto parameters = sharded_parameters(*model);
        const double norm = clip_grad_norm(parameters, max_norm, mesh, norm_type);
        EXPECT_NEAR(norm, expected, kTolerance * expected);
        // One for each axis.
        EXPECT_EQ(log->count("all_reduce"), (shard > 1 ? 1 : 0) + (replicate > 1 ? 1 : 0));
        EXPECT_EQ(log->records().size(), static_cast<size_t>(log->count("all_reduce")));
        for (const ShardedParameter& parameter : parameters) {
          const at::Tensor whole = reference->named_parameters()[parameter.fqn].grad();
          const at::Tensor clipped = whole.mul(max_norm / (expected + 1e-6))
                                         .narrow(0, parameter.row_begin, parameter.local.size(0));
          EXPECT_TRUE(parameter.local.grad().allclose(clipped, 1e-4, 1e-6)) << parameter.fqn;
        }
        EXPECT_NEAR(clip_grad_norm(parameters, 2 * max_norm, mesh, norm_type), max_norm,
                    2 * kTolerance * max_norm);
      });
    }
  }
}

// One parameter with the given gradient rows.
std::vector<ShardedParameter> with_gradient(nn::Linear& linear, const at::Tensor& gradient) {
  auto parameters = sharded_parameters(linear);
  at::Tensor& grad = parameters[0].local.mutable_grad();
  grad = gradient.narrow(0, parameters[0].row_begin, parameters[0].local.size(0)).clone();
  return parameters;
}

TEST(ClipGradNorm, SmallGradientsStayBitForBit) {
  run_ranks_shared(2, [](auto world) {
    const comm::DeviceMesh mesh(world, 1, 2);
    nn::Linear linear({1, 3, false}, at::TensorOptions());
    fully_shard(linear, mesh);
    const at::Tensor gradient = at::zeros({3, 1}).add(0.1);
    const auto parameters = with_gradient(linear, gradient);
    clip_grad_norm(parameters, 1.0, mesh);
    EXPECT_TRUE(parameters[0].local.grad().equal(
        gradient.narrow(0, parameters[0].row_begin, parameters[0].local.size(0))));
    EXPECT_EQ(clip_grad_norm(with_gradient(linear, gradient.mul(0)), 1.0, mesh), 0);
  });
}

TEST(ClipGradNorm, NonFiniteNormIsReportedOnEveryRankAndChangesNothing) {
  for (const double bad : {kInfinity, static_cast<double>(NAN)}) {
    for (const double norm_type : {2.0, kInfinity}) {
      run_ranks_shared(2, [&](auto world) {
        const comm::DeviceMesh mesh(world, 1, 2);
        nn::Linear linear({1, 4, false}, at::TensorOptions());
        fully_shard(linear, mesh);
        const at::Tensor gradient = at::zeros({4, 1}).add(7.0);
        gradient[3].fill_(bad);  // on rank 1
        const auto parameters = with_gradient(linear, gradient);
        const double norm = clip_grad_norm(parameters, 1.0, mesh, norm_type);
        EXPECT_EQ(std::isnan(norm), std::isnan(bad));
        EXPECT_FALSE(std::isfinite(norm));
        EXPECT_EQ(parameters[0].local.grad()[0].item<double>(), 7.0);
      });
    }
  }
}

TEST(ClipGradNorm, WrongArgumentsThrow) {
  run_ranks_shared(1, [](auto world) {
    const comm::DeviceMesh mesh(world, 1, 1);
    EXPECT_THROW(clip_grad_norm({}, 0.0, mesh), c10::Error);
    EXPECT_THROW(clip_grad_norm({}, NAN, mesh), c10::Error);
    EXPECT_THROW(clip_grad_norm({}, 1.0, mesh, 0.0), c10::Error);
    EXPECT_EQ(clip_grad_norm({}, 1.0, mesh), 0.0);
  });
}

}  // namespace
}  // namespace narrowgauge::fsdp
