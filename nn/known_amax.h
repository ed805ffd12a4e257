#pragma once

#include <ATen/core/Tensor.h>

// The largest magnitude of a tensor from the kernel that wrote it to the cast that reads it next: a
// pass over memory less for scales that follow the values. A linear neither knows what made its
// input nor its gradient, so the two meet here. One entry a thread, the last: kernel and cast run
// one behind the other, in forward as in backward.
namespace narrowgauge::nn {

// amax: fp32 [] on x's device, max |x| exactly, NaN if x holds one. x: contiguous.
void set_known_amax(const at::Tensor& x, at::Tensor amax);

// That of x, once; undefined unless x is all of the tensor that was told last on this thread (a
// view of other sizes, detached: yes; a part: no) and was not written since.
at::Tensor take_known_amax(const at::Tensor& x);

}  // namespace narrowgauge::nn
