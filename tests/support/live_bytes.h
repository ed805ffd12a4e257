#pragma once

#include <cstdint>

namespace narrowgauge::testing {

// Memory of CPU tensors, counted where it is allocated and freed: all threads of the process,
// tensors alone (neither containers nor a library's own buffers). The first call of any of these
// starts the count; what was allocated before stays out of it.

int64_t live_bytes();

// The most that was alive at once since the last reset.
int64_t peak_bytes();
void reset_peak_bytes();

}  // namespace narrowgauge::testing
