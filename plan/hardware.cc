#include "plan/hardware.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <vector>

namespace narrowgauge::plan {
namespace {

constexpr double kMiB = 1 << 20;
constexpr double kTera = 1e12;
constexpr double kGiga = 1e9;

// Memory: what nvidia-smi reports. Peaks and bandwidths: data sheets (dense, SXM unless the name
// says otherwise). Links: NVLink one way; the 4090 has PCIe 4.0 x16 and no peer access. Networks:
// one 400 Gb/s adapter a GPU (A100: 200). `sustained` was fitted, see plan/efficiency.h.
std::vector<Hardware> make_table() {
  return {
      {.name = "H100",
       .memory_bytes = 81559 * kMiB,
       .bf16_flops = 989.4 * kTera,
       .fp8_flops = 1978.9 * kTera,
       .fp32_flops = 66.9 * kTera,
       .memory_bandwidth = 3.35 * kTera,
       .link_bandwidth = 450 * kGiga,
       .network_bandwidth = 50 * kGiga},
      // 96 GB HBM2e under 500 W: the machines of torchtitan's and torchao's tables.
      {.name = "H100-500W",
       .memory_bytes = 97871 * kMiB,
       .bf16_flops = 989.4 * kTera,
       .fp8_flops = 1978.9 * kTera,
       .fp32_flops = 66.9 * kTera,
       .memory_bandwidth = 2.4 * kTera,
       .link_bandwidth = 450 * kGiga,
       .network_bandwidth = 50 * kGiga,
       .sustained = 0.83},
      {.name = "H200",
       .memory_bytes = 143771 * kMiB,
       .bf16_flops = 989.4 * kTera,
       .fp8_flops = 1978.9 * kTera,
       .fp32_flops = 66.9 * kTera,
       .memory_bandwidth = 4.8 * kTera,
       .link_bandwidth = 450 * kGiga,
       .network_bandwidth = 50 * kGiga},
      {.name = "B200",
       .memory_bytes = 183359 * kMiB,
       .bf16_flops = 2250 * kTera,
       .fp8_flops = 4500 * kTera,
       .fp32_flops = 75 * kTera,
       .memory_bandwidth = 8.0 * kTera,
       .link_bandwidth = 900 * kGiga,
       .network_bandwidth = 50 * kGiga},
      // The power-limited machine of torchao's table.
      {.name = "B200-limited",
       .memory_bytes = 183359 * kMiB,
       .bf16_flops = 2250 * kTera,
       .fp8_flops = 4500 * kTera,
       .fp32_flops = 75 * kTera,
       .memory_bandwidth = 8.0 * kTera,
       .link_bandwidth = 900 * kGiga,
       .network_bandwidth = 50 * kGiga,
       .sustained = 0.45},
      {.name = "A100",
       .memory_bytes = 81920 * kMiB,
       .bf16_flops = 312 * kTera,
       .fp32_flops = 19.5 * kTera,
       .memory_bandwidth = 2.039 * kTera,
       .link_bandwidth = 300 * kGiga,
       .network_bandwidth = 25 * kGiga},
      {.name = "4090",
       .memory_bytes = 24564 * kMiB,
       .bf16_flops = 165.2 * kTera,
       .fp8_flops = 330.3 * kTera,
       .fp32_flops = 82.6 * kTera,
       .memory_bandwidth = 1.008 * kTera,
       .link_bandwidth = 20 * kGiga,
       .network_bandwidth = 3 * kGiga},
  };
}

std::string lower_case(std::string_view text) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  return lower;
}

// "NVIDIA H100 80GB HBM3" holds the word "h100"; "GH200" does not hold "h200".
bool holds_word(const std::string& text, const std::string& word) {
  for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) {
    const auto is_part = [&](size_t i) {
      return i < text.size() && std::isalnum(static_cast<unsigned char>(text[i])) != 0;
    };
    if ((at == 0 || !is_part(at - 1)) && !is_part(at + word.size())) {
      return true;
    }
  }
  return false;
}

}  // namespace

std::span<const Hardware> known_hardware() {
  static const std::vector<Hardware> table = make_table();
  return table;
}

std::optional<Hardware> find_hardware(std::string_view name) {
  const std::string wanted = lower_case(name);
  for (const Hardware& hardware : known_hardware()) {
    if (lower_case(hardware.name) == wanted) {
      return hardware;
    }
  }
  // Other variants (PCIe, NVL) have other peaks, so a driver's name of one of those matches none.
  const bool is_variant = holds_word(wanted, "pcie") || holds_word(wanted, "nvl") ||
                          holds_word(wanted, "mig") || holds_word(wanted, "40gb") ||
                          holds_word(wanted, "laptop") || holds_word(wanted, "d");
  for (const Hardware& hardware : known_hardware()) {
    if (!is_variant && holds_word(wanted, lower_case(hardware.name))) {
      return hardware;
    }
  }
  return std::nullopt;
}

Hardware cpu_hardware(int64_t num_threads) {
  const auto threads = static_cast<double>(num_threads);
  Hardware cpu;
  cpu.name = "cpu";
  cpu.memory_bytes =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  // Measured rates of oneDNN and MKL on one AVX-512 core of 2024; without AVX512-BF16 a product in
  // bfloat16 runs at fp32's rate, and with AVX2 alone at half of that.
  const bool has_avx512 = __builtin_cpu_supports("avx512f") != 0;
  cpu.fp32_flops = threads * (has_avx512 ? 70 : 35) * kGiga;
  cpu.bf16_flops =
      __builtin_cpu_supports("avx512bf16") != 0 ? threads * 400 * kGiga : cpu.fp32_flops;
  cpu.memory_bandwidth = std::min(threads, 4.0) * 25 * kGiga;
  cpu.per_node = 1 << 20;  // ranks of one host share memory
  cpu.link_bandwidth = 4 * kGiga;
  cpu.network_bandwidth = 1 * kGiga;
  return cpu;
}

std::string installed_gpu() {
  namespace fs = std::filesystem;
  std::error_code error;
  for (const auto& gpu : fs::directory_iterator("/proc/driver/nvidia/gpus", error)) {
    std::ifstream file(gpu.path() / "information");
    for (std::string line; std::getline(file, line);) {
      if (line.starts_with("Model:")) {
        const size_t begin = line.find_first_not_of(" \t", 6);
        return begin == std::string::npos ? "" : line.substr(begin);
      }
    }
  }
  return "";
}

}  // namespace narrowgauge::plan
