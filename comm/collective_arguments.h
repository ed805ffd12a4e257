#pragma once

#include <ATen/core/Tensor.h>

#include "comm/communicator.h"

namespace narrowgauge::comm {

// What every implementation of Communicator refuses, with one text. Tensors must be on `device`,
// which is where the communicator works. All throw c10::Error.
void check_all_gather(const at::Tensor& output, const at::Tensor& input, int rank, int size,
                      c10::Device device = c10::kCPU);
void check_reduce_scatter(const at::Tensor& output, const at::Tensor& input, int size,
                          c10::Device device = c10::kCPU);
void check_all_reduce(const at::Tensor& tensor, c10::Device device = c10::kCPU);
void check_broadcast(const at::Tensor& tensor, int root, int size, c10::Device device = c10::kCPU);
void check_split(int color);
// kAvg of integers, which would have to round.
void check_reduce_op(ReduceOp op, c10::ScalarType dtype);

// True when `input` is rank's slice of `output`.
bool gathers_in_place(const at::Tensor& output, const at::Tensor& input, int rank);

}  // namespace narrowgauge::comm
