#include "trainer/step_profiler.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <set>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "trainer/kernel_table.h"
#include "trainer/operator_table.h"

namespace narrowgauge::trainer {
namespace {

using torch::autograd::profiler::KinetoEvent;
using torch::autograd::profiler::ProfilerResult;
using torch::profiler::impl::ActivityType;
using torch::profiler::impl::ProfilerConfig;
using torch::profiler::impl::ProfilerState;

ProfilerConfig profiler_config() {
  return ProfilerConfig(ProfilerState::KINETO, /*report_input_shapes=*/true);
}

std::set<ActivityType> activities(c10::Device device) {
  return device.is_cpu() ? std::set<ActivityType>{ActivityType::CPU}
                         : std::set<ActivityType>{ActivityType::CPU, ActivityType::CUDA};
}

void wait_for(c10::Device device) {
  if (!device.is_cpu()) {
    c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
  }
}

// "128x64 64x32"
std::string shapes_of(const KinetoEvent& operation) {
  std::string text;
  if (operation.hasShapes()) {
    for (const auto& shape : operation.shapes()) {
      std::string sizes;
      for (const int64_t size : shape) {
        sizes += (sizes.empty() ? "" : "x") + std::to_string(size);
      }
      text += (text.empty() || sizes.empty() ? "" : " ") + sizes;
    }
  }
  return text;
}

std::string describe(const KinetoEvent& operation) {
  const std::string shapes = shapes_of(operation);
  return operation.name() + (shapes.empty() ? "" : " " + shapes);
}

// 2 m n k of a product of matrices, whichever operator makes it; else 0.
double product_flops(const KinetoEvent& operation) {
  static constexpr std::pair<std::string_view, size_t> kProducts[] = {
      {"aten::mm", 0}, {"aten::addmm", 1}, {"aten::_scaled_mm", 0}, {"aten::_scaled_mm_v2", 0}};
  const std::string name = operation.name();
  for (const auto& [product, first] : kProducts) {
    if (name != product || !operation.hasShapes() || operation.shapes().size() < first + 2) {
      continue;
    }
    const auto& a = operation.shapes()[first];
    const auto& b = operation.shapes()[first + 1];
    return a.size() == 2 && b.size() == 2
               ? 2.0 * static_cast<double>(a[0]) * static_cast<double>(a[1]) *
                     static_cast<double>(b[1])
               : 0.0;
  }
  return 0;
}

std::string operators_of(const ProfilerResult& result) {
  std::vector<HostEvent> on_host;
  for (const KinetoEvent& event : result.events()) {
    if (event.deviceType() == c10::DeviceType::CPU) {
      const double flops = product_flops(event);
      on_host.push_back({event.name(), event.startThreadId(), static_cast<int64_t>(event.startNs()),
                         static_cast<int64_t>(event.endNs()), flops,
                         flops > 0 ? shapes_of(event) : ""});
    }
  }
  return operator_table(on_host);
}

std::string kernels_of(const ProfilerResult& result) {
  std::unordered_map<uint64_t, const KinetoEvent*> operations;
  for (const KinetoEvent& event : result.events()) {
    if (event.deviceType() == c10::DeviceType::CPU && event.linkedCorrelationId() == 0) {
      operations.emplace(event.correlationId(), &event);
    }
  }
  std::vector<DeviceEvent> on_device;
  std::vector<RuntimeCall> calls;
  for (const KinetoEvent& event : result.events()) {
    const std::string name = event.name();
    if (event.deviceType() == c10::DeviceType::CPU) {
      if (name.starts_with("cuda") || name.starts_with("cu")) {
        calls.push_back({name, static_cast<int64_t>(event.durationNs())});
      }
      continue;
    }
    const auto operation = operations.find(event.linkedCorrelationId());
    const bool known = operation != operations.end();
    on_device.push_back({name, known ? describe(*operation->second) : "",
                         static_cast<int64_t>(event.startNs()), static_cast<int64_t>(event.endNs()),
                         known ? product_flops(*operation->second) : 0.0});
  }
  return kernel_table(on_device, calls);
}

}  // namespace

StepProfiler::StepProfiler(const ProfilingConfig& config, std::filesystem::path run, int rank,
                           c10::Device device)
    : config_(config),
      folder_(std::move(run) / config.save_traces_folder),
      rank_(rank),
      device_(device) {}

void StepProfiler::before_step(int64_t step) {
  if (!config_.enable_profiling) {
    return;
  }
  const int64_t to_come = (config_.profile_freq - step % config_.profile_freq) %
                          config_.profile_freq;  // steps from this one to the end of the trace
  if (phase_ == Phase::kOff && to_come < config_.profiler_active + config_.profiler_warmup) {
    torch::autograd::profiler::prepareProfiler(profiler_config(), activities(device_));
    phase_ = Phase::kWarmUp;
  }
  if (phase_ == Phase::kWarmUp && to_come < config_.profiler_active) {
    wait_for(device_);  // else what is left of the step before counts as this one's
    torch::autograd::profiler::enableProfiler(profiler_config(), activities(device_));
    phase_ = Phase::kActive;
  }
}

void StepProfiler::after_step(int64_t step) {
  if (phase_ == Phase::kActive && step % config_.profile_freq == 0) {
    phase_ = Phase::kOff;
    write(step);
  }
}

void StepProfiler::write(int64_t step) {
  wait_for(device_);
  const auto result = torch::autograd::profiler::disableProfiler();
  const std::filesystem::path folder = folder_ / ("iteration_" + std::to_string(step));
  const std::string rank = "rank" + std::to_string(rank_);
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  result->save(folder / (rank + "_trace.json"));
  bool written = std::filesystem::exists(folder / (rank + "_trace.json"));
  std::ofstream file(folder / (rank + (device_.is_cpu() ? "_operators.txt" : "_kernels.txt")));
  file << (device_.is_cpu() ? operators_of(*result) : kernels_of(*result));
  file.close();
  written = written && !file.fail();
  if (!written) {
    std::fprintf(stderr, "step %ld: no trace could be written to %s\n", step, folder.c_str());
  }
}

}  // namespace narrowgauge::trainer
