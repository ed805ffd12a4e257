#pragma once

#include <string>

namespace narrowgauge::cuda {

// Whether this machine has NVIDIA's driver; loads nothing.
bool has_driver();

// Loads libtorch's CUDA half and with it cuBLAS, cuDNN and NCCL, which costs 0.2 s and is therefore
// done by who wants a GPU only. Empty once a GPU can be used, else the reason why not.
std::string load_libtorch_cuda();

// REQUIRES: load_libtorch_cuda() was successful, for these two.
// GPUs that this process may use.
int num_gpus();
// What names a GPU on its host for every process, whatever each may use: "0000:3B:00.0".
std::string pci_bus_id(int gpu);

}  // namespace narrowgauge::cuda
