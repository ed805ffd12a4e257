#include "plan/memory_model.h"

#include <algorithm>
#include <map>

#include "nn/loss_chunk.h"
#include "plan/activation_model.h"
#include "plan/model_size.h"

namespace narrowgauge::plan {
namespace {

// A process that has loaded libtorch, opened its data and built an empty model, and what lies free
// between its tensors (memory/tensor_arena.h): fitted on tests/plan/peak_resident_test.py.
constexpr double kProcessBytes = 165e6;
constexpr double kContextBytes = 1.5e9;
constexpr double kFragments = 0.02;

// A group of parameters that fsdp gathers and reduces together.
struct Group {
  double numel = 0;          // whole
  double sharded_numel = 0;  // of this rank, padded
  double linear_numel = 0;   // of those that float8 takes over
};

Group make_group(const std::vector<ParameterSize>& parameters, const TrainingSpec& spec) {
  Group group;
  group.numel = static_cast<double>(total_numel(parameters));
  group.sharded_numel = static_cast<double>(sharded_numel(parameters, spec.shard_degree));
  for (const ParameterSize& parameter : parameters) {
    if (spec.uses_float8() && parameter.is_block_linear &&
        float8_refusal(parameter.row_numel, parameter.rows).empty()) {
      group.linear_numel += static_cast<double>(parameter.numel());
    }
  }
  return group;
}

// One step of one rank.
class StepWalk {
 public:
  // With `offloads`, shards, moments and reduced gradients are in another memory. With `emulates`,
  // FP8 products convert their operands to fp32 first. With `fuses_loss`, forward goes from the
  // last norm to the loss and its gradients in chunks of rows (nn/linear_cross_entropy.h).
  StepWalk(const TrainingSpec& spec, bool offloads, bool emulates, bool fuses_loss)
      : spec_(spec),
        shard_bytes_(offloads ? 0 : 4),
        offloads_(offloads),
        emulates_(emulates),
        fuses_loss_(fuses_loss),
        block_(make_group(block_parameters(spec.model), spec)),
        root_(make_group(root_parameters(spec.model), spec)),
        all_(block_activations(spec)),
        param_bytes_(static_cast<double>(spec.param_bytes)),
        reduce_bytes_(static_cast<double>(spec.reduce_bytes)) {}

  LiveBytes walk() {
    live_.enter("start");
    const double layers = num_layers();
    const double shard = layers * block_.sharded_numel + root_.sharded_numel;
    live_.take(Kind::kParameters, shard_bytes_ * shard);
    live_.take(Kind::kOptimizer, offloads_ ? 0 : optimizer_state_bytes(spec_.optimizer) * shard);
    if (!is_sharded()) {
      // Copies in the compute dtype (none in fp32) and the cached FP8 operands stay for good.
      const double whole = layers * block_.numel + root_.numel;
      live_.take(Kind::kGathered, is_wide() ? 0 : param_bytes_ * whole);
      live_.take(Kind::kGathered, layers * block_.linear_numel);
    }
    for (int64_t pass = 0; pass < spec_.accumulation_steps; ++pass) {
      is_last_pass_ = pass + 1 == spec_.accumulation_steps;
      is_first_pass_ = pass == 0;
      forward();
      backward();
    }
    live_.enter("optimizer step");
    return live_;
  }

 private:
  double num_layers() const { return static_cast<double>(spec_.model.num_layers); }
  bool is_sharded() const { return spec_.shard_degree > 1; }
  bool is_wide() const { return spec_.param_bytes == 4; }
  bool needs_reduction() const { return spec_.world_size() > 1; }

  // The unsharded parameters stay until reshard; the buffer that the ranks fill goes at once.
  void gather(const Group& group) {
    if (is_sharded()) {
      live_.take(Kind::kGathered, param_bytes_ * group.numel + group.linear_numel);
      const double buffer = param_bytes_ * group.sharded_numel * degree();
      live_.take(Kind::kGathered, buffer);
      live_.give(Kind::kGathered, buffer);
    }
  }
  void reshard(const Group& group) {
    if (is_sharded()) {
      live_.give(Kind::kGathered, param_bytes_ * group.numel + group.linear_numel);
    }
  }
  double kept_after_forward() const {
    return is_sharded() && spec_.reshard_ranks > 0
               ? param_bytes_ * block_.numel / static_cast<double>(spec_.reshard_ranks)
               : 0;
  }
  double degree() const { return static_cast<double>(spec_.shard_degree); }

  // Taken and freed within a block: something of `bytes` while `body` runs.
  void workspace(double bytes) {
    live_.take(Kind::kWorkspace, bytes);
    live_.give(Kind::kWorkspace, bytes);
  }

  void forward() {
    live_.enter("forward of the embedding");
    gather(root_);
    for (int64_t i = 0; i < spec_.model.num_layers; ++i) {
      live_.enter("forward of block " + std::to_string(i));
      gather(block_);
      block_forward(i);
      if (spec_.reshard_after_forward) {
        reshard(block_);
        live_.take(Kind::kGathered, kept_after_forward());
      }
    }
    live_.enter("forward of the head");
    // The last block's output and the last norm's, which the head keeps; a row of each norm.
    live_.take(Kind::kActivations, 2 * row_bytes(spec_, spec_.model.dim) + tokens() * 4);
    if (fuses_loss_) {
      head_in_chunks();
      return;
    }
    // Logits and their log-sum-exp.
    live_.take(Kind::kActivations, row_bytes(spec_, spec_.model.vocab_size) + tokens() * 4);
  }

  bool is_one_chunk() const { return tokens() <= static_cast<double>(loss_chunk_rows()); }
  int64_t loss_chunk_rows() const {
    return nn::loss_chunk_rows(spec_.model.vocab_size, spec_.param_bytes);
  }

  // Leaves the gradients of the last norm's output, which nothing keeps, and of the head's weight:
  // an fp32 sum if there are several chunks.
  void head_in_chunks() {
    const double rows = std::min(tokens(), static_cast<double>(loss_chunk_rows()));
    const double logits = rows * static_cast<double>(spec_.model.vocab_size) * param_bytes_;
    const double row = row_bytes(spec_, spec_.model.dim);
    live_.take(Kind::kWorkspace, row + logits + tokens() * 4);
    if (is_one_chunk()) {
      live_.take(Kind::kGradients, param_bytes_ * table_numel());
    } else {
      live_.take(Kind::kGradients, 4 * table_numel());
      workspace(param_bytes_ * table_numel());  // a chunk's
    }
    live_.give(Kind::kWorkspace, logits + tokens() * 4);
    live_.give(Kind::kActivations, row);
  }

  void block_forward(int64_t index) {
    const bool recomputes = spec_.recomputes(index);
    const Recompute mode = recomputes ? spec_.recompute : Recompute::kNone;
    const double kept = kept_bytes(all_, mode);
    compute_block(mode == Recompute::kFull ? kept : 0, kept);
  }

  // Forward arithmetic: everything a block saves comes one after another, with the output of each
  // linear in between; then all but `kept` goes. `already` of it is there before.
  void compute_block(double already, double kept) {
    const nn::TransformerConfig& model = spec_.model;
    const int64_t w = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim;
    live_.take(Kind::kActivations, already);
    double taken = already;
    const auto take = [&](double bytes) {
      live_.take(Kind::kActivations, bytes);
      taken += bytes;
    };
    take(all_.input - std::min(already, all_.input) + all_.attention_norm);
    const double qkv = row_bytes(spec_, w);
    live_.take(Kind::kWorkspace, qkv);
    take(all_.heads_norm + all_.heads);
    live_.give(Kind::kWorkspace, qkv);
    take(all_.attention + all_.rows);
    const double o = row_bytes(spec_, model.dim);
    live_.take(Kind::kWorkspace, o);
    take(all_.residual + all_.ffn_norm);
    live_.give(Kind::kWorkspace, o);
    take(all_.gate_up);
    // With float8, the wide input of down_proj is there until it is cast.
    const double wide_ffn = row_bytes(spec_, model.ffn_dim);
    live_.take(Kind::kWorkspace, all_.ffn > 0 ? 0 : wide_ffn);
    take(all_.ffn + all_.narrow);
    live_.give(Kind::kWorkspace, all_.ffn > 0 ? 0 : wide_ffn);
    // down_proj's output and the sum that leaves the block.
    workspace(2 * row_bytes(spec_, model.dim));
    live_.give(Kind::kActivations, std::max(0.0, taken - kept));
  }

  void backward() {
    head_backward();
    for (int64_t i = spec_.model.num_layers - 1; i >= 0; --i) {
      live_.enter("backward of block " + std::to_string(i));
      if (spec_.reshard_after_forward) {
        gather_in_backward(i);
      }
      const Recompute mode = spec_.recomputes(i) ? spec_.recompute : Recompute::kNone;
      if (mode == Recompute::kFull) {
        compute_block_again();
      } else if (mode == Recompute::kSelective) {
        live_.take(Kind::kActivations, all_.total() - kept_bytes(all_, mode));
      }
      block_backward();
      reduce(block_);
    }
    live_.enter("backward of the embedding");
    // The table's gradient; the head's has been there all along unless they are one.
    const double table = param_bytes_ * table_numel();
    live_.take(Kind::kGradients, table);
    if (spec_.model.tie_word_embeddings) {
      live_.give(Kind::kGradients, table);  // summed into the head's
    }
    live_.give(Kind::kWorkspace, row_bytes(spec_, spec_.model.dim));
    reduce(root_);
    release_reduction();
  }

  // While one block computes, the buffer of the next one's gathering is being filled.
  void gather_in_backward(int64_t index) {
    if (!is_sharded()) {
      return;
    }
    const double buffer = param_bytes_ * block_.sharded_numel * degree();
    if (index + 1 == spec_.model.num_layers) {
      live_.take(Kind::kGathered, buffer);
    }
    live_.take(Kind::kGathered, param_bytes_ * block_.numel + block_.linear_numel);
    live_.give(Kind::kGathered, buffer + kept_after_forward());
    if (index > 0) {
      live_.take(Kind::kGathered, buffer);
    }
  }

  double tokens() const { return static_cast<double>(spec_.local_tokens()); }
  double table_numel() const {
    return static_cast<double>(spec_.model.vocab_size * spec_.model.dim);
  }

  void head_backward() {
    live_.enter("backward of the loss");
    const double row = row_bytes(spec_, spec_.model.dim);
    if (fuses_loss_) {
      if (!is_one_chunk()) {
        live_.take(Kind::kGradients, param_bytes_ * table_numel());
        live_.give(Kind::kGradients, 4 * table_numel());
      }
    } else {
      logits_backward(row);
    }
    live_.take(Kind::kWorkspace, row);  // through the last norm
    live_.take(Kind::kGradients, param_bytes_ * static_cast<double>(spec_.model.dim));
    live_.give(Kind::kWorkspace, row);
    live_.give(Kind::kActivations, row + tokens() * 4);
    // One gradient [T, dim] stays in the workspace while it goes down the blocks.
  }

  void logits_backward(double row) {
    const double logits = row_bytes(spec_, spec_.model.vocab_size);
    live_.take(Kind::kWorkspace, logits);  // the gradient of the logits
    live_.give(Kind::kActivations, logits + tokens() * 4);
    live_.enter("backward of the head");
    live_.take(Kind::kWorkspace, row);
    live_.take(Kind::kGradients, param_bytes_ * table_numel());
    live_.give(Kind::kWorkspace, logits);
    live_.give(Kind::kActivations, row);
  }

  void compute_block_again() {
    live_.give(Kind::kActivations, all_.input);
    compute_block(all_.input, all_.total());
  }

  // The gradient of a block's output is there; that of its input is at the end. Each step takes the
  // gradients it makes, then frees what it read.
  void block_backward() {
    const nn::TransformerConfig& model = spec_.model;
    const double row = row_bytes(spec_, model.dim);
    const double ffn = row_bytes(spec_, model.ffn_dim);
    const double q = row_bytes(spec_, model.num_heads * model.head_dim);
    const double heads = all_.heads;
    live_.take(Kind::kWorkspace, ffn);  // down_proj
    products(model.ffn_dim, model.dim);
    live_.give(Kind::kActivations, all_.ffn);
    live_.take(Kind::kWorkspace, 2 * ffn);  // SwiGLU
    live_.give(Kind::kActivations, all_.gate_up);
    live_.give(Kind::kWorkspace, ffn);
    live_.take(Kind::kWorkspace, row);  // gate_up_proj
    products(model.dim, 2 * model.ffn_dim);
    live_.give(Kind::kWorkspace, 2 * ffn);
    live_.give(Kind::kActivations, all_.ffn_norm);
    live_.take(Kind::kWorkspace, row);  // norm with residual: one gradient for both of its inputs
    live_.give(Kind::kActivations, all_.residual);
    live_.give(Kind::kWorkspace, 2 * row);
    live_.take(Kind::kWorkspace, q + row);  // o_proj; the residual's gradient stays
    products(model.num_heads * model.head_dim, model.dim);
    live_.take(Kind::kWorkspace, heads);  // attention
    live_.give(Kind::kActivations, all_.attention + all_.heads);
    live_.give(Kind::kWorkspace, q);
    live_.take(Kind::kWorkspace, heads);  // RoPE
    live_.give(Kind::kWorkspace, heads);
    live_.give(Kind::kActivations, all_.heads_norm);
    live_.take(Kind::kWorkspace, row);  // qkv_proj
    products(model.dim, static_cast<int64_t>(heads / row_bytes(spec_, 1)));
    live_.give(Kind::kWorkspace, heads);
    live_.give(Kind::kActivations, all_.attention_norm + all_.narrow);
    live_.take(Kind::kWorkspace, row);  // first norm, then the sum with the residual's gradient
    live_.give(Kind::kActivations, all_.input + all_.rows);
    live_.give(Kind::kWorkspace, 2 * row);
    const double linears =
        static_cast<double>(model.dim * (3 * model.ffn_dim + model.num_heads * model.head_dim) +
                            static_cast<int64_t>(heads / row_bytes(spec_, 1)) * model.dim);
    live_.take(Kind::kGradients, param_bytes_ * (block_.numel - linears));  // norms, biases
  }

  // Both products of a linear's backward: the gradient of its weight, and what they need meanwhile.
  void products(int64_t in, int64_t out) {
    live_.take(Kind::kGradients, param_bytes_ * static_cast<double>(in * out));
    if (emulates_ && float8_refusal(in, out).empty()) {
      const auto rows = static_cast<double>(spec_.local_tokens());
      const auto other = std::max(rows, static_cast<double>(out)) * static_cast<double>(in);
      workspace(4 * (rows * static_cast<double>(out) + other));
    }
  }

  // Whole gradients in the compute dtype become what stays: shards in fp32, or, between passes of a
  // step, whole ones in the reduction's dtype.
  void reduce(const Group& group) {
    const double whole = param_bytes_ * group.numel;
    if (!needs_reduction()) {
      if (is_applied_early() && is_first_pass_) {
        live_.give(Kind::kGradients, whole);
        return;
      }
      hand_over(group, whole);
      live_.give(Kind::kGradients, is_applied_early() ? 4 * group.numel : 0);
    } else if (!is_last_pass_) {
      if (is_first_pass_ && reduce_bytes_ != param_bytes_) {
        live_.take(Kind::kGradients, reduce_bytes_ * group.numel);
        live_.give(Kind::kGradients, whole);
      } else if (!is_first_pass_) {
        live_.give(Kind::kGradients, whole);
      }
      reshard(group);
    } else {
      if (!is_first_pass_) {
        live_.give(Kind::kGradients, whole);  // added to the accumulated ones
      }
      const double gradients = is_first_pass_ ? whole : reduce_bytes_ * group.numel;
      reshard(group);
      release_reduction();
      const double input = reduce_bytes_ * group.sharded_numel * degree();
      live_.take(Kind::kGradients, input);
      live_.give(Kind::kGradients, gradients);
      if (is_sharded()) {  // else the buffer itself is the result
        live_.take(Kind::kGradients, shard_bytes_ * group.sharded_numel);
        reducing_ = input;
      }
      if (is_applied_early()) {
        reducing_ = input + (is_sharded() ? shard_bytes_ * group.sharded_numel : 0);
      }
    }
  }

  // The optimizer applies and drops gradients as they are handed over.
  bool is_applied_early() const { return spec_.early_step_in_backward && is_last_pass_; }

  // The buffer that a reduce-scatter reads is freed when the next one begins.
  void release_reduction() {
    live_.give(Kind::kGradients, reducing_);
    reducing_ = 0;
  }

  void hand_over(const Group& group, double whole) {
    if (is_wide()) {
      if (!is_first_pass_) {
        live_.give(Kind::kGradients, whole);  // added to the first pass's
      }
      return;
    }
    // One parameter at a time: the largest is there in both dtypes at once, the others in one.
    if (is_first_pass_) {
      live_.take(Kind::kGradients, (4 - param_bytes_) * group.numel);
    } else {
      live_.give(Kind::kGradients, whole);
    }
  }

  const TrainingSpec& spec_;
  double shard_bytes_;
  bool offloads_;
  bool emulates_;
  bool fuses_loss_;
  Group block_;
  Group root_;
  BlockActivations all_;
  double param_bytes_;
  double reduce_bytes_;
  bool is_first_pass_ = true;
  bool is_last_pass_ = true;
  double reducing_ = 0;  // bytes that a reduction in flight reads
  LiveBytes live_;
};

}  // namespace

MemoryPlan plan_memory(const TrainingSpec& spec, const Hardware& hardware) {
  const LiveBytes live = StepWalk(spec, spec.cpu_offload && !hardware.is_cpu(),
                                  spec.uses_float8() && hardware.fp8_flops == 0, hardware.is_cpu())
                             .walk();
  MemoryPlan plan = {live.peak(), live.peak_moment(), {}};
  if (hardware.is_cpu()) {
    plan.peak.of_kind[static_cast<size_t>(Kind::kProcess)] = kProcessBytes;
  }
  const BlockActivations all = block_activations(spec);
  for (int64_t i = 0; i < spec.model.num_layers; ++i) {
    plan.activations_of_block.push_back(
        kept_bytes(all, spec.recomputes(i) ? spec.recompute : Recompute::kNone));
  }
  return plan;
}

double optimizer_state_bytes(const std::string& optimizer) {
  // 8 and 4 bits: two moments, an fp32 scale for 256 and 128 elements each; FP8: two moments of a
  // byte, a scale for 256; Muon: one momentum (its AdamW part, embeddings and vectors, is small).
  static const std::map<std::string, double> kBytes = {{"AdamW", 8.0},
                                                       {"AdamW8bit", 2 * (1 + 4.0 / 256)},
                                                       {"AdamW4bit", 2 * (0.5 + 4.0 / 128)},
                                                       {"AdamWFp8", 2 * (1 + 4.0 / 256)},
                                                       {"Muon", 4.0}};
  const auto found = kBytes.find(optimizer);
  return found == kBytes.end() ? 8.0 : found->second;
}

double optimizer_traffic_bytes(const TrainingSpec& spec) {
  const double shard = static_cast<double>(
      spec.model.num_layers * sharded_numel(block_parameters(spec.model), spec.shard_degree) +
      sharded_numel(root_parameters(spec.model), spec.shard_degree));
  // Parameters and moments are read and written, gradients read twice (for the norm, too).
  const double update = 2 * 4 + 2 * 4 + 2 * optimizer_state_bytes(spec.optimizer);
  const double refresh = spec.param_bytes == 4 ? 0 : 4 + static_cast<double>(spec.param_bytes);
  return shard * (update + refresh);
}

double reserved_bytes(const Hardware& hardware) {
  return hardware.is_cpu() ? 0 : kContextBytes + kFragments * hardware.memory_bytes;
}

}  // namespace narrowgauge::plan
