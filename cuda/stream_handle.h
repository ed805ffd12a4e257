#pragma once

struct CUstream_st;

namespace narrowgauge::cuda {

// cudaStream_t without CUDA's headers, so that who launches a kernel compiles as fast as before.
using StreamHandle = CUstream_st*;

}  // namespace narrowgauge::cuda
