#pragma once

#include <cstdint>

#include "nn/layer.h"
#include "nn/transformer.h"

// Activation checkpointing (Chen et al. 2016): backward computes parts of forward again instead of
// keeping what they saved. Losses and gradients keep their bits. A pass without gradients
// (evaluation, generation) is not touched.
//
// Applied once to a built model: after conversions that replace layers, before sharding. The hooks
// of a wrapped layer lie outside of what is recomputed, so a sharded layer gathers and reduces as
// ever.

namespace narrowgauge::nn {

enum class CheckpointMode {
  kNone,
  // Every n-th block keeps only its input and is recomputed as a whole.
  kFull,
  // Every n-th block keeps the outputs of its matrix products and of attention, and recomputes what
  // lies between: both norms and the SwiGLU. What is left per token, in elements: 4 dim + 2 (key
  // and value features) + 2 ffn_dim, instead of 6 dim + 2 (...) + 3 ffn_dim.
  kSelective,
};

struct ActivationCheckpoint {
  CheckpointMode mode = CheckpointMode::kNone;
  int64_t every_nth_block = 1;  // blocks n, 2n, ..., counted from 1
};

void apply_activation_checkpoint(Transformer& model, const ActivationCheckpoint& options);

// Backward runs the forward of `layer` again, once, on its saved first input. What forward drew
// from the default generators of the CPU and of the input's device, it draws again. It must be a
// function of its first input, of leaves (parameters) and of tensors without gradient; gradients of
// leaves are accumulated by a backward inside of backward, hence refused, with a message, are
// autograd::grad and backward into chosen inputs, and derivatives of second order. Not for layers
// whose call returns two tensors.
void recompute_forward(Layer& layer);

// Frees the memory of what `producer` returns once `consumer` has used it in forward, and computes
// it again, as forward(first input of producer), when the gradient of consumer's output is there.
// REQUIRES: nothing but consumer uses the output. `forward` is cheap and gives the same bits; it
// runs without gradients.
void recompute_output(Layer& producer, Layer::Forward forward, Layer& consumer);

}  // namespace narrowgauge::nn
