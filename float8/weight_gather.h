#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "float8/operand.h"

namespace narrowgauge::float8 {

// For how long a gathered weight is there, which decides what a gather has to bring.
struct WeightLifetime {
  int num_shards = 1;               // 1: it is made once a step and never released
  bool kept_after_forward = false;  // one gather serves forward and backward
  bool recomputed = false;          // backward runs the forward again (activation checkpointing)
};

// A weight on its way from the shards of all ranks to the operands of its two products. The shard
// is in fp32; between gather and release the whole weight exists in fp8 alone.
//
// What travels is
//   - fp8, if float8_on_wire: each rank casts its rows, once a step, with scales that all ranks
//     agree on (see agree_on_scales); a byte an element, and 4 bytes a row where scales are by row;
//   - or param_dtype, cast by every rank after each gather.
// Scaled by row, output and grad_input read different codes (a scale belongs to a row in the one,
// to a column in the other), so a gather brings those that its pass needs: in forward those of
// output, in backward those of grad_input. Either is one byte an element.
class WeightGather {
 public:
  // weight: how it is cast; outlives this object. rows: of the whole weight.
  WeightGather(Operand& weight, int64_t rows, at::ScalarType param_dtype, bool float8_on_wire,
               const WeightLifetime& lifetime);

  // What to gather for `padded_shard` [padded rows, cols]; see fsdp::ParamExtension.
  std::vector<at::Tensor> pack(const at::Tensor& padded_shard);
  void unpack(const std::vector<at::Tensor>& outputs);
  void release() { gathered_ = {}; }

  // The gathered operands of output and of grad_input. Throw c10::Error if they are not there.
  const Float8TrainingTensor& dim1() const;
  const Float8TrainingTensor& dim0() const;

  // Agreement on scales, once after every change of the weight (an optimizer step, a load): the
  // amaxes of this rank's rows that other ranks must know, flat fp32; empty if there are none.
  // Forgets the casts of the shard.
  at::Tensor begin_agreement(const at::Tensor& shard);
  // amaxes: the same, the largest over all ranks that hold rows.
  void end_agreement(const at::Tensor& amaxes);

 private:
  bool needs_agreement(const CastConfig& config, int64_t dim) const;
  void check_agreed(const at::Tensor& padded_shard) const;
  const Float8TrainingTensor& shard_cast(const at::Tensor& padded_shard, int64_t dim);
  at::Tensor scale_for(const at::Tensor& padded_shard, const CastConfig& config, int64_t dim) const;
  Float8TrainingTensor assemble(const std::vector<at::Tensor>& outputs, size_t& next,
                                const CastConfig& config, int64_t dim) const;

  Operand& weight_;
  int64_t rows_;
  at::ScalarType param_dtype_;
  bool float8_on_wire_;
  WeightLifetime lifetime_;

  // Of the gather at hand: which operands it brings.
  bool brings_dim1_ = false;
  bool brings_dim0_ = false;
  OperandCasts gathered_;

  // Of this rank's shard, with float8_on_wire.
  OperandCasts shard_casts_;
  bool agreed_ = false;
  const void* shard_data_ = nullptr;  // of the shard when agreement began, and its version
  int64_t shard_version_ = 0;
  at::Tensor scale_dim1_;  // agreed multipliers; undefined where none is needed
  at::Tensor scale_dim0_;
};

}  // namespace narrowgauge::float8
