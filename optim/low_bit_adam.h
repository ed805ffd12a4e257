#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "comm/communicator.h"
#include "optim/adam_options.h"
#include "optim/block_exchange.h"
#include "optim/codebook_on_device.h"
#include "optim/moment_state.h"
#include "optim/optimizer.h"
#include "optim/parameter_groups.h"

namespace narrowgauge::optim {

struct LowBitAdamOptions {
  AdamOptions adam;
  StateFormat state_format = StateFormat::k8bit;
  // Round bf16 parameters stochastically: updates too small for a bf16 then act on average. The
  // random bits are a function of (seed, parameter name, step, element of the whole parameter).
  bool bf16_stochastic_round = false;
  uint64_t seed = 0;
  // Where shard_axis takes tensors; none: where the parameters are.
  std::optional<at::Device> comm_device = std::nullopt;
};

// Adam and AdamW with moments in few bits, for fp32 and bf16 parameters: torchao's AdamW8bit,
// AdamW4bit, AdamWFp8 and _AdamW. In fp32, with t the step:
//   m <- lerp(m, g, 1 - beta1);  v <- lerp(v, g g, 1 - beta2)
//   p <- p (1 - lr wd) - lr (m / (1 - beta1^t)) / (sqrt(v) / sqrt(1 - beta2^t) + eps)
// The update uses the new moments before they are quantized. Codes and scales have the bits of
// torchao 0.17 (its step as it compiles it, where no product is fused into a sum), and they do not
// depend on sharding, device, threads or instruction set; see block_layout.h. One pass over
// parameter, gradient and moments, a block at a time.
class LowBitAdam : public Optimizer {
 public:
  // shard_axis: the ranks that share the parameters, outlives this; null for one. Collective.
  // Throws c10::Error on wrong groups or options, a parameter that is not contiguous fp32 or bf16,
  // or parameters on several devices.
  LowBitAdam(std::vector<ParameterGroup> groups, const LowBitAdamOptions& options,
             comm::Communicator* shard_axis);
  LowBitAdam(const LowBitAdam&) = delete;
  LowBitAdam& operator=(const LowBitAdam&) = delete;

  // Collective over shard_axis if a shard boundary cuts a block.
  void step(double lr, double gradient_scale = 1.0) override;
  bool communicates() const override { return !exchange_.is_empty(); }
  void zero_grad() override;
  // "<parameter>.exp_avg" and "<parameter>.exp_avg_sq", each followed by ".codes" and ".scale" if
  // it is quantized.
  std::vector<StateTensor> state() override;
  int64_t step_count() const override { return step_count_; }
  void set_step_count(int64_t count) override;

 private:
  struct Slot {
    GroupedParameter parameter;
    BlockLayout layout;
    bool is_quantized;
    MomentState exp_avg;
    MomentState exp_avg_sq;
    uint64_t rounding_key;
  };
  // A slot in a step.
  struct SlotStep;

  Slot make_slot(GroupedParameter parameter) const;
  SlotStep begin_step(const Slot& slot, double lr, double gradient_scale) const;
  void step_on_cpu(const std::vector<SlotStep>& steps);
  void step_on_device(const std::vector<SlotStep>& steps, double gradient_scale);
  kernels::LowBitAdamTensor device_tensor(const SlotStep& step) const;
  kernels::MomentMaxima block_maxima(const SlotStep& step, int64_t block) const;
  void step_block(const SlotStep& step, int64_t block) const;

  LowBitAdamOptions options_;
  at::Device device_;  // of all parameters
  CodebookOnDevice exp_avg_codebook_;
  CodebookOnDevice exp_avg_sq_codebook_;
  std::vector<Slot> slots_;
  BlockExchange exchange_;
  int64_t step_count_ = 0;
};

}  // namespace narrowgauge::optim
