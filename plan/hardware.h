#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace narrowgauge::plan {

// One accelerator and the links between several. 0 means: unknown. Peaks are the vendor's dense
// figures; what software attains of them is in plan/efficiency.h.
struct Hardware {
  std::string name;
  double memory_bytes = 0;      // that a process can allocate
  double bf16_flops = 0;        // operations a second, fp32 accumulation
  double fp8_flops = 0;         // 0 on a known one: it has no FP8 products
  double fp32_flops = 0;        // without TF32, which torch leaves off
  double memory_bandwidth = 0;  // bytes a second
  double link_bandwidth = 0;    // to the other accelerators of a node, bytes a second one way
  int64_t per_node = 8;
  double network_bandwidth = 0;  // of one accelerator out of its node, bytes a second one way
  double sustained = 1.0;        // share of the peaks left under the power limit, in a whole step

  bool is_cpu() const { return name == "cpu"; }
  bool has_peak() const { return bf16_flops > 0; }
};

// H100, H200, B200, A100, 4090 and the variants of hardware.cc. The processor is not among them:
// see cpu_hardware.
std::span<const Hardware> known_hardware();

// By name ("h200"), or by what a driver calls it ("NVIDIA H200"); upper and lower case are one.
// nullopt where none matches.
std::optional<Hardware> find_hardware(std::string_view name);

// This machine's processors: `num_threads` of them for each rank, memory as the kernel tells it.
Hardware cpu_hardware(int64_t num_threads);

// What the NVIDIA driver calls the first GPU of this machine; empty without driver or GPU.
std::string installed_gpu();

}  // namespace narrowgauge::plan
