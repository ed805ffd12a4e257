#pragma once

#include <ATen/core/Tensor.h>

namespace narrowgauge::comm {

// What every implementation of Communicator refuses, with one text. All throw c10::Error.
void check_all_gather(const at::Tensor& output, const at::Tensor& input, int rank, int size);
void check_reduce_scatter(const at::Tensor& output, const at::Tensor& input, int size);
void check_all_reduce(const at::Tensor& tensor);
void check_broadcast(const at::Tensor& tensor, int root, int size);
void check_split(int color);

// True when `input` is rank's slice of `output`.
bool gathers_in_place(const at::Tensor& output, const at::Tensor& input, int rank);

}  // namespace narrowgauge::comm
