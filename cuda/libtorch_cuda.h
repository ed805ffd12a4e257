#pragma once

#include <string>

namespace narrowgauge::cuda {

// Whether this machine has NVIDIA's driver; loads nothing.
bool has_driver();

// Loads libtorch's CUDA half and with it cuBLAS, cuDNN and NCCL, which costs 0.2 s and is therefore
// done by who wants a GPU only. Empty once a GPU can be used, else the reason why not.
std::string load_libtorch_cuda();

}  // namespace narrowgauge::cuda
