#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>

#include "float8/config.h"

namespace narrowgauge::float8 {

// The largest magnitudes of one operand in the last steps, and the scale they give the next one
// (delayed scaling: Micikevicius et al. 2022, Transformer Engine). A scale that is known before the
// tensor saves the pass that would measure it; magnitudes above the remembered ones saturate.
//
// Until the first step has ended there is no scale: casts then take their own, as dynamic scaling
// does, so that no run begins with an arbitrary one and nothing is exchanged inside a step.
class AmaxHistory {
 public:
  // length: steps remembered, >= 1.
  AmaxHistory(int64_t length, AmaxComputeAlgo algo, const CastSpec& spec);

  // Forgets the oldest step and enters `amax`, the largest magnitude of the step that ends, over
  // all ranks. 0 is not entered: nothing was cast (a frozen layer), or zeros alone, whose scale
  // would saturate whatever follows. REQUIRES: amax is finite.
  void push(float amax);

  // The multiplier for the next casts, fp32 []; undefined while nothing is remembered. On the CPU
  // after push and restored, until set_scale.
  const at::Tensor& scale() const { return scale_; }
  // A copy of scale() on the device that casts, so that no cast waits for its own.
  void set_scale(at::Tensor copy) { scale_ = std::move(copy); }

  // fp32 [length] on the CPU, newest first, 0 where there is nothing yet: the state that a
  // checkpoint holds. Whoever writes to it calls restored() then.
  const at::Tensor& values() const { return values_; }
  void restored() { compute_scale(); }

 private:
  void compute_scale();

  AmaxComputeAlgo algo_;
  CastSpec spec_;
  at::Tensor values_;
  at::Tensor scale_;
};

}  // namespace narrowgauge::float8
