// Trains the toy model on MPI ranks, again on as many threads of each process and on one alone:
// losses and parameters over MPI and over threads must agree bit for bit, those of one rank but for
// the order of sums. Started by mpi_parity_test.sh.
//   mpi_parity REPLICATE SHARD

#include <cmath>
#include <cstdlib>
#include <exception>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "comm/device_mesh.h"
#include "comm/mpi_session.h"
#include "comm/self_communicator.h"
#include "fsdp/clip_grad_norm.h"
#include "fsdp/fully_shard.h"
#include "tests/fsdp/toy_model.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::fsdp {
namespace {

struct Trained {
  std::vector<double> losses;
  std::vector<double> norms;
  std::map<std::string, at::Tensor> parameters;
};

Trained train(const std::shared_ptr<comm::Communicator>& world, int replicate, int shard,
              at::ScalarType param_dtype) {
  const comm::DeviceMesh mesh(world, replicate, shard);
  const FullyShardOptions options{
      .mp_policy = {.param_dtype = param_dtype, .reduce_dtype = at::kFloat}};
  // Large enough that reductions take the path of large tensors.
  const ToySpec spec{.vocab = 301, .dim = 67, .hidden = 131};
  const auto model = make_sharded_toy(spec, mesh, options);
  ToyAdam adam(locals_of(*model), 1e-2);
  Trained trained;
  for (int step = 0; step < 5; ++step) {
    const ToyBatch batch = slice_of_rank(toy_batch(spec, step, 12), world->rank(), world->size());
    const at::Tensor loss = model->loss_sum(batch.tokens, batch.targets).div(48);
    loss.backward();
    trained.norms.push_back(clip_grad_norm(sharded_parameters(*model), 1.0, mesh));
    adam.step();
    const at::Tensor total = loss.detach().to(at::kDouble);
    world->all_reduce(total, comm::ReduceOp::kSum);
    trained.losses.push_back(total.item<double>());
  }
  trained.parameters = full_parameters(*model, mesh);
  return trained;
}

void expect_equal(const Trained& mpi, const Trained& threads) {
  if (mpi.losses != threads.losses || mpi.norms != threads.norms) {
    throw std::runtime_error("expected equal losses and norms, got last losses " +
                             std::to_string(mpi.losses.back()) + " over MPI and " +
                             std::to_string(threads.losses.back()) + " over threads");
  }
  if (!(mpi.losses.back() < mpi.losses.front())) {
    throw std::runtime_error("expected a falling loss, got " + std::to_string(mpi.losses.front()) +
                             " and then " + std::to_string(mpi.losses.back()));
  }
  for (const auto& [fqn, parameter] : threads.parameters) {
    if (!parameter.equal(mpi.parameters.at(fqn))) {
      throw std::runtime_error("expected equal parameters, got another " + fqn);
    }
  }
}

// In fp32. Sums over rows of the batch and their halves differ by a few units in the last place,
// which Adam turns into as little of its step of lr where gradients are not tiny.
void expect_close(const Trained& mpi, const Trained& alone) {
  for (size_t step = 0; step < alone.losses.size(); ++step) {
    const double loss = std::abs(mpi.losses[step] / alone.losses[step] - 1.0);
    const double norm = std::abs(mpi.norms[step] / alone.norms[step] - 1.0);
    if (!(loss < 1e-5) || !(norm < 1e-4)) {
      throw std::runtime_error("expected the loss of one process, got one that differs by " +
                               std::to_string(loss) + " and a norm by " + std::to_string(norm) +
                               " in step " + std::to_string(step));
    }
  }
}

void run(const std::shared_ptr<comm::Communicator>& world, int replicate, int shard) {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
    const Trained mpi = train(world, replicate, shard, dtype);
    Trained threads;
    narrowgauge::testing::run_ranks_shared(replicate * shard, [&](auto thread_world) {
      auto trained = train(thread_world, replicate, shard, dtype);
      if (thread_world->rank() == 0) {
        threads = std::move(trained);
      }
    });
    expect_equal(mpi, threads);
    if (dtype == at::kFloat) {
      expect_close(mpi, train(std::make_shared<comm::SelfCommunicator>(), 1, 1, dtype));
    }
  }
}

}  // namespace
}  // namespace narrowgauge::fsdp

int main(int argc, char** argv) {
  namespace ng = narrowgauge;
  ng::comm::MpiSession session;
  try {
    if (argc != 3) {
      throw std::runtime_error("usage: mpi_parity REPLICATE SHARD");
    }
    const int replicate = std::atoi(argv[1]);
    const int shard = std::atoi(argv[2]);
    ng::fsdp::run(session.world(), replicate, shard);
    return 0;
  } catch (const std::exception& error) {
    return session.fail(error.what());
  }
}
