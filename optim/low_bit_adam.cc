#include "optim/low_bit_adam.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <map>
#include <utility>

#include "cuda/launch_scope.h"
#include "optim/kernels/low_bit_adam_cuda.h"
#include "vectorize/philox.h"

namespace narrowgauge::optim {
namespace {

constexpr int64_t kMaxBlockSize = 256;
constexpr int64_t kBlocksPerThread = 64;
constexpr int64_t kCacheLine = 64;
constexpr int64_t kPrefetchDistance = 2;          // blocks; 1 is 6 % slower, 3 and 4 are no faster
constexpr uint64_t kRoundingSalt = 0x726f756e64;  // keeps the stream apart from initial values'

Codebook exp_avg_codebook(StateFormat format) {
  return format == StateFormat::kFp8    ? Codebook::e4m3()
         : format == StateFormat::k4bit ? Codebook::dynamic_tree(true, 3, 4)
                                        : Codebook::dynamic_tree(true, 7, 8);
}

Codebook exp_avg_sq_codebook(StateFormat format) {
  return format == StateFormat::kFp8    ? Codebook::e4m3()
         : format == StateFormat::k4bit ? Codebook::linear4()
                                        : Codebook::dynamic_tree(false, 7, 8);
}

bool is_kernel_dtype(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16;
}

void check_tensor(const at::Tensor& tensor, const std::string& what) {
  TORCH_CHECK(is_kernel_dtype(tensor) && tensor.is_contiguous(), "expected ", what,
              " to be contiguous fp32 or bf16, got ", tensor.toString(), " with sizes ",
              tensor.sizes(), " and strides ", tensor.strides());
}

at::Device device_of(const std::vector<ParameterGroup>& groups) {
  for (const ParameterGroup& group : groups) {
    if (!group.params.empty()) {
      return group.params[0].device();
    }
  }
  return at::kCPU;
}

int64_t numel(const std::vector<int64_t>& sizes) {
  int64_t product = 1;
  for (const int64_t size : sizes) {
    product *= size;
  }
  return product;
}

// As torchao's compiled step: scalars are fp32 from the start.
kernels::LowBitAdamCoefficients coefficients_of(const AdamOptions& options, int64_t step, double lr,
                                                double weight_decay, double gradient_scale) {
  const auto t = static_cast<float>(step);
  const auto narrow_lr = static_cast<float>(lr);
  const auto narrow_decay = static_cast<float>(weight_decay);
  kernels::LowBitAdamCoefficients c;
  c.gradient_scale = static_cast<float>(gradient_scale);
  c.decoupled_decay = options.decoupled_weight_decay ? narrow_lr * narrow_decay : 0.0F;
  c.l2_decay = options.decoupled_weight_decay ? 0.0F : narrow_decay;
  c.grad_weight = static_cast<float>(1.0 - options.beta1);
  c.grad_sq_weight = static_cast<float>(1.0 - options.beta2);
  c.correction1 = 1.0F - std::pow(static_cast<float>(options.beta1), t);
  c.correction_sqrt = std::sqrt(1.0F - std::pow(static_cast<float>(options.beta2), t));
  c.eps = static_cast<float>(options.eps);
  c.lr = narrow_lr;
  return c;
}

// fp32 values of a piece of a tensor: in place, or widened to `scratch`.
float* read_piece(void* data, bool is_bf16, int64_t begin, int64_t count, float* scratch) {
  if (!is_bf16) {
    return static_cast<float*>(data) + begin;
  }
  kernels::widen(scratch, static_cast<const uint16_t*>(data) + begin, count);
  return scratch;
}

void prefetch_piece(const void* data, bool is_bf16, int64_t begin, int64_t count) {
  const int64_t size = is_bf16 ? 2 : 4;
  const auto* bytes = static_cast<const char*>(data);
  for (int64_t at = begin * size; at < (begin + count) * size; at += kCacheLine) {
    __builtin_prefetch(bytes + at);
  }
}

}  // namespace

struct LowBitAdam::SlotStep {
  const Slot* slot;
  size_t index;         // of the slot
  at::Tensor gradient;  // kept alive
  kernels::LowBitAdamCoefficients coefficients;
  void* param;
  void* grad;
  bool is_param_bf16;
  bool is_grad_bf16;
};

LowBitAdam::LowBitAdam(std::vector<ParameterGroup> groups, const LowBitAdamOptions& options,
                       comm::Communicator* shard_axis)
    : options_(options),
      device_(device_of(groups)),
      exp_avg_codebook_(exp_avg_codebook(options.state_format), device_),
      exp_avg_sq_codebook_(exp_avg_sq_codebook(options.state_format), device_),
      exchange_(nullptr, {}, device_, device_) {
  check_options(options_.adam);
  std::vector<BlockLayout> layouts;
  for (GroupedParameter& parameter : flatten(std::move(groups))) {
    check_tensor(parameter.param, "parameter '" + parameter.name + "'");
    TORCH_CHECK(parameter.param.device() == device_, "expected all parameters on ", device_,
                ", got '", parameter.name, "' on ", parameter.param.device());
    slots_.push_back(make_slot(std::move(parameter)));
    // Of a state that is kept whole no block has a scale to agree on.
    BlockLayout layout = slots_.back().layout;
    layout.num_elements = slots_.back().is_quantized ? layout.num_elements : 0;
    layouts.push_back(layout);
  }
  exchange_ = BlockExchange(shard_axis, layouts, device_, options_.comm_device.value_or(device_));
}

LowBitAdam::Slot LowBitAdam::make_slot(GroupedParameter parameter) const {
  const int64_t global_elements = numel(parameter.shard.global_sizes);
  const int64_t rows = parameter.shard.global_sizes.empty() ? 1 : parameter.shard.global_sizes[0];
  const StateFormat format = format_for(options_.state_format, global_elements);
  BlockLayout layout;
  layout.block_size = block_size(format);
  layout.first_element = rows == 0 ? 0 : global_elements / rows * parameter.shard.row_begin;
  layout.num_elements = parameter.param.numel();
  layout.global_elements = global_elements;
  MomentState exp_avg(format, exp_avg_codebook_.table(), layout, parameter.shard, parameter.param);
  MomentState exp_avg_sq(format, exp_avg_sq_codebook_.table(), layout, parameter.shard,
                         parameter.param);
  const uint64_t key =
      vectorize::stream_key(parameter.name) ^ vectorize::mix_bits(options_.seed + kRoundingSalt);
  const bool is_quantized = format != StateFormat::kFloat32 && format != StateFormat::kBFloat16;
  return {std::move(parameter),  layout, is_quantized, std::move(exp_avg),
          std::move(exp_avg_sq), key};
}

LowBitAdam::SlotStep LowBitAdam::begin_step(const Slot& slot, double lr,
                                            double gradient_scale) const {
  const GroupedParameter& parameter = slot.parameter;
  SlotStep step{};
  step.slot = &slot;
  step.gradient = parameter.param.grad().contiguous();
  check_tensor(step.gradient, "the gradient of '" + parameter.name + "'");
  TORCH_CHECK(step.gradient.sizes() == parameter.param.sizes(), "expected a gradient of '",
              parameter.name, "' with sizes ", parameter.param.sizes(), ", got ",
              step.gradient.sizes());
  step.coefficients = coefficients_of(options_.adam, step_count_, lr * parameter.lr_scale,
                                      parameter.weight_decay, gradient_scale);
  step.param = parameter.param.mutable_data_ptr();
  step.grad = const_cast<void*>(step.gradient.const_data_ptr());  // read_piece reads only
  step.is_param_bf16 = parameter.param.scalar_type() == at::kBFloat16;
  step.is_grad_bf16 = step.gradient.scalar_type() == at::kBFloat16;
  return step;
}

void LowBitAdam::step(double lr, double gradient_scale) {
  ++step_count_;
  std::vector<SlotStep> steps;
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i].parameter.param.grad().defined() && slots_[i].layout.num_elements > 0) {
      steps.push_back(begin_step(slots_[i], lr, gradient_scale));
      steps.back().index = i;
    }
  }
  if (device_.is_cpu()) {
    step_on_cpu(steps);
  } else {
    step_on_device(steps, gradient_scale);
  }
  for (const SlotStep& step : steps) {
    step.slot->parameter.param.unsafeGetTensorImpl()->bump_version();
  }
}

void LowBitAdam::step_on_cpu(const std::vector<SlotStep>& steps) {
  if (!exchange_.is_empty()) {
    exchange_.clear();
    for (const SlotStep& step : steps) {
      if (const int64_t first = exchange_.first_slot(step.index); first >= 0) {
        exchange_.put(first, block_maxima(step, 0));
      }
      if (const int64_t last = exchange_.last_slot(step.index); last >= 0) {
        exchange_.put(last, block_maxima(step, step.slot->layout.num_blocks() - 1));
      }
    }
    exchange_.reduce();
  }
  for (const SlotStep& step : steps) {
    at::parallel_for(0, step.slot->layout.num_blocks(), kBlocksPerThread,
                     [&](int64_t begin, int64_t end) {
                       for (int64_t block = begin; block < end; ++block) {
                         step_block(step, block);
                       }
                     });
  }
}

void LowBitAdam::step_on_device(const std::vector<SlotStep>& steps, double gradient_scale) {
  std::map<int64_t, std::vector<kernels::LowBitAdamTensor>> tensors;  // by block size
  for (const SlotStep& step : steps) {
    tensors[step.slot->layout.block_size].push_back(device_tensor(step));
  }
  kernels::LowBitAdamStep common;
  common.coefficients = coefficients_of(options_.adam, step_count_, 0.0, 0.0, gradient_scale);
  common.exp_avg_table = exp_avg_codebook_.table();
  common.exp_avg_sq_table = exp_avg_sq_codebook_.table();
  common.step = static_cast<uint64_t>(step_count_);
  common.stochastic_round = options_.bf16_stochastic_round;
  if (slots_.empty()) {
    return;
  }
  const cuda::LaunchScope scope(slots_[0].parameter.param);
  if (!exchange_.is_empty()) {
    exchange_.clear();
    common.maxima = exchange_.words().mutable_data_ptr<int32_t>();
    for (const auto& [block_size, of_size] : tensors) {
      kernels::low_bit_adam_maxima(of_size, block_size, common, scope.stream());
    }
    exchange_.reduce();
  }
  for (const auto& [block_size, of_size] : tensors) {
    kernels::low_bit_adam(of_size, block_size, common, scope.stream());
  }
}

kernels::LowBitAdamTensor LowBitAdam::device_tensor(const SlotStep& step) const {
  const Slot& slot = *step.slot;
  kernels::LowBitAdamTensor tensor;
  tensor.param = step.param;
  tensor.grad = step.grad;
  tensor.exp_avg = slot.exp_avg.data();
  tensor.exp_avg_sq = slot.exp_avg_sq.data();
  tensor.exp_avg_scale = slot.exp_avg.scales();
  tensor.exp_avg_sq_scale = slot.exp_avg_sq.scales();
  tensor.first_element = slot.layout.first_element;
  tensor.num_elements = slot.layout.num_elements;
  tensor.rounding_key = slot.rounding_key;
  tensor.lr = step.coefficients.lr;
  tensor.decoupled_decay = step.coefficients.decoupled_decay;
  tensor.l2_decay = step.coefficients.l2_decay;
  tensor.first_slot = static_cast<int32_t>(exchange_.first_slot(step.index));
  tensor.last_slot = static_cast<int32_t>(exchange_.last_slot(step.index));
  tensor.layout = slot.exp_avg.layout();
  tensor.is_param_bf16 = step.is_param_bf16;
  tensor.is_grad_bf16 = step.is_grad_bf16;
  return tensor;
}

kernels::MomentMaxima LowBitAdam::block_maxima(const SlotStep& step, int64_t block) const {
  const Slot& slot = *step.slot;
  const int64_t begin = slot.layout.begin(block);
  const int64_t count = slot.layout.begin(block + 1) - begin;
  float scratch[4][kMaxBlockSize];
  const float* param = read_piece(step.param, step.is_param_bf16, begin, count, scratch[0]);
  const float* grad = read_piece(step.grad, step.is_grad_bf16, begin, count, scratch[1]);
  // Quantized moments are decoded into the scratch, so nothing is changed.
  return kernels::update_moments(slot.exp_avg.read(block, scratch[2]),
                                 slot.exp_avg_sq.read(block, scratch[3]), grad, param, count,
                                 step.coefficients);
}

void LowBitAdam::step_block(const SlotStep& step, int64_t block) const {
  const Slot& slot = *step.slot;
  const int64_t begin = slot.layout.begin(block);
  const int64_t count = slot.layout.begin(block + 1) - begin;
  const bool is_last = block + 1 == slot.layout.num_blocks();
  if (const int64_t ahead = block + kPrefetchDistance; ahead < slot.layout.num_blocks()) {
    const int64_t first = slot.layout.begin(ahead);
    const int64_t size = slot.layout.begin(ahead + 1) - first;
    prefetch_piece(step.param, step.is_param_bf16, first, size);
    prefetch_piece(step.grad, step.is_grad_bf16, first, size);
    slot.exp_avg.prefetch(ahead);
    slot.exp_avg_sq.prefetch(ahead);
  }
  float scratch[4][kMaxBlockSize];
  float* param = read_piece(step.param, step.is_param_bf16, begin, count, scratch[0]);
  const float* grad = read_piece(step.grad, step.is_grad_bf16, begin, count, scratch[1]);
  float* exp_avg = slot.exp_avg.read(block, scratch[2]);
  float* exp_avg_sq = slot.exp_avg_sq.read(block, scratch[3]);
  const kernels::LowBitAdamCoefficients& c = step.coefficients;
  kernels::MomentMaxima maxima =
      kernels::update_moments(exp_avg, exp_avg_sq, grad, param, count, c);
  kernels::update_param(param, exp_avg, exp_avg_sq, count, c);
  if (step.is_param_bf16) {
    auto* out = static_cast<uint16_t*>(step.param) + begin;
    if (options_.bf16_stochastic_round) {
      kernels::narrow_stochastic(out, param, slot.layout.first_element + begin, count,
                                 {slot.rounding_key, static_cast<uint64_t>(step_count_)});
    } else {
      kernels::narrow(out, param, count);
    }
  }
  const int64_t exchanged = block == 0 && exchange_.first_slot(step.index) >= 0
                                ? exchange_.first_slot(step.index)
                            : is_last ? exchange_.last_slot(step.index)
                                      : -1;
  maxima = exchanged >= 0 ? exchange_.get(exchanged) : maxima;
  slot.exp_avg.write(block, exp_avg, maxima.exp_avg);
  slot.exp_avg_sq.write(block, exp_avg_sq, maxima.exp_avg_sq);
}

void LowBitAdam::zero_grad() {
  for (Slot& slot : slots_) {
    slot.parameter.param.mutable_grad() = at::Tensor();
  }
}

std::vector<StateTensor> LowBitAdam::state() {
  std::vector<StateTensor> state;
  for (const Slot& slot : slots_) {
    slot.exp_avg.append_to(state, slot.parameter.name + ".exp_avg");
    slot.exp_avg_sq.append_to(state, slot.parameter.name + ".exp_avg_sq");
  }
  return state;
}

void LowBitAdam::set_step_count(int64_t count) {
  TORCH_CHECK(count >= 0, "expected a step count >= 0, got ", count);
  step_count_ = count;
}

}  // namespace narrowgauge::optim
