#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "optim/optimizer.h"
#include "optim/parameter_groups.h"

namespace narrowgauge::optim {

// How the learning rate follows the shape [A, B] of a matrix (torch.optim.Muon's adjust_lr_fn).
enum class AdjustLr {
  kOriginal,       // sqrt(max(1, A / B)), Keller Jordan's
  kMatchRmsAdamW,  // 0.2 sqrt(max(A, B)), Moonshot's: takes learning rates tuned for AdamW
};

// Options of torch.optim.Muon.
struct MuonOptions {
  double momentum = 0.95;
  bool nesterov = true;
  int ns_steps = 5;
  double eps = 1e-7;
  AdjustLr adjust_lr = AdjustLr::kOriginal;
};

// Whether Muon is meant for a parameter: the matrices between embedding and head.
bool is_hidden_matrix(const std::string& name, const std::vector<int64_t>& global_sizes);

// update: [A, B] bf16. Returns about U V^T of its singular value decomposition, bf16 (singular
// values between 0.5 and 1.5), by quintic Newton-Schulz iterations with torch.optim.Muon's
// coefficients and operations.
at::Tensor newton_schulz(const at::Tensor& update, int num_steps, double eps);

// Muon (Jordan 2024) on matrices [A, B]:
//   b <- lerp(b, g, 1 - momentum);  u = lerp(g, b, momentum), or b without nesterov
//   p <- p (1 - lr wd) - lr adjust(A, B) newton_schulz(u)
// Equal to torch.optim.Muon (2.11) on one rank. Sharded by rows, each matrix is gathered in bf16 on
// the rank that has it in turn, most expensive first, so that all ranks compute at once; the result
// is the same at every world size.
class Muon : public Optimizer {
 public:
  // shard_axis: the ranks that share the parameters, outlives this; null for one. Collective.
  // Throws c10::Error on wrong groups or options, or a parameter that is no matrix.
  Muon(std::vector<ParameterGroup> groups, const MuonOptions& options,
       comm::Communicator* shard_axis);

  // Collective over shard_axis. Ranks may lack the gradient of a matrix of which they have no row.
  void step(double lr, double gradient_scale = 1.0) override;
  bool communicates() const override { return shard_axis_ != nullptr && shard_axis_->size() > 1; }
  void zero_grad() override;
  // "<parameter>.momentum_buffer"
  std::vector<StateTensor> state() override;
  int64_t step_count() const override { return step_count_; }
  void set_step_count(int64_t count) override;

 private:
  struct Slot {
    GroupedParameter parameter;
    at::Tensor momentum_buffer;
    std::vector<int64_t> rows;  // of each rank
  };

  void exchange_rows();
  std::vector<size_t> slots_with_gradient() const;
  // This rank's rows of what is to be orthogonalized, bf16.
  at::Tensor local_update(Slot& slot, double gradient_scale) const;
  at::Tensor gather(const Slot& slot, const at::Tensor& local, bool keep) const;
  // As many matrices as ranks, one for each.
  void step_round(const std::vector<size_t>& round, double lr, double gradient_scale);
  void apply(Slot& slot, const at::Tensor& rows, double lr) const;

  std::vector<Slot> slots_;  // most expensive first
  MuonOptions options_;
  comm::Communicator* shard_axis_;  // not owned; null: one rank
  int64_t step_count_ = 0;
};

}  // namespace narrowgauge::optim
