#include "quantization/autoquant.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/ones.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <utility>

#include "nn/linear.h"
#include "quantization/quantized_linear.h"

namespace narrowgauge::quantization {
namespace {

constexpr int kTimedCalls = 15;

double median_seconds(nn::Linear& linear, const at::Tensor& x) {
  linear(x);
  std::vector<double> times;
  for (int i = 0; i < kTimedCalls; ++i) {
    const auto started = std::chrono::steady_clock::now();
    linear(x);
    times.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count());
  }
  std::nth_element(times.begin(), times.begin() + kTimedCalls / 2, times.end());
  return times[kTimedCalls / 2];
}

double output_sqnr_db(const at::Tensor& expected, const at::Tensor& y) {
  const double signal = expected.to(at::kDouble).square().sum().item<double>();
  const double noise = expected.sub(y.to(at::kFloat)).to(at::kDouble).square().sum().item<double>();
  return noise == 0 ? std::numeric_limits<double>::infinity() : 10 * std::log10(signal / noise);
}

bool divides(const QuantizationSpec& spec, int64_t cols) {
  return spec.group_size <= 0 || cols % spec.group_size == 0;
}

std::shared_ptr<nn::Linear> plain_linear(const at::Tensor& weight) {
  auto linear = std::make_shared<nn::Linear>(nn::LinearSpec{weight.size(1), weight.size(0), false},
                                             weight.options().device(at::kMeta));
  linear->replace_parameter("weight", weight);
  return linear;
}

}  // namespace

Autoquant::Autoquant(std::vector<Scheme> candidates, double min_sqnr_db, int64_t num_tokens)
    : candidates_(std::move(candidates)), min_sqnr_db_(min_sqnr_db), num_tokens_(num_tokens) {
  TORCH_CHECK(!candidates_.empty() && num_tokens > 0, "expected candidates and tokens to time");
}

std::optional<Scheme> Autoquant::choose(const std::string& name, const at::Tensor& weight,
                                        const InputStatistics& inputs) {
  const at::NoGradGuard no_grad;
  const at::Tensor sample = inputs.sample().to(weight.scalar_type());
  TORCH_CHECK(sample.size(0) > 0, "autoquant: expected calibration inputs of ", name, ", got none");
  AutoquantChoice choice{name, weight.size(0), weight.size(1), {}, 0};
  const auto timed = [&](const std::string& scheme, nn::Linear& linear) {
    const auto [entry, is_new] = seconds_.try_emplace({scheme, choice.rows, choice.cols}, 0.0);
    if (is_new) {
      entry->second =
          median_seconds(linear, at::ones({num_tokens_, choice.cols}, sample.options()));
    }
    return entry->second;
  };
  const auto plain = plain_linear(weight);
  choice.trials.push_back({"none", timed("none", *plain), std::numeric_limits<double>::infinity(),
                           static_cast<int64_t>(weight.nbytes())});
  const at::Tensor expected = sample.to(at::kFloat).matmul(weight.to(at::kFloat).t());
  std::vector<const Scheme*> schemes = {nullptr};
  for (const Scheme& scheme : candidates_) {
    if (!divides(scheme.weight, choice.cols) ||
        (scheme.activation && !divides(*scheme.activation, choice.cols))) {
      continue;
    }
    QuantizedLinear linear({choice.cols, choice.rows, false}, {quantize(weight, scheme.weight)},
                           scheme.activation, {});
    choice.trials.push_back({scheme.name, timed(scheme.name, linear),
                             output_sqnr_db(expected, linear(sample)), linear.weight_bytes()});
    schemes.push_back(&scheme);
  }
  for (size_t i = 1; i < choice.trials.size(); ++i) {
    if (choice.trials[i].sqnr_db >= min_sqnr_db_ &&
        choice.trials[i].seconds < choice.trials[choice.chosen].seconds) {
      choice.chosen = i;
    }
  }
  const Scheme* scheme = schemes[choice.chosen];
  choices_.push_back(std::move(choice));
  return scheme == nullptr ? std::nullopt : std::optional(*scheme);
}

std::string autoquant_table(const std::vector<AutoquantChoice>& choices) {
  char line[256];
  std::snprintf(line, sizeof line, "  %-34s %-14s %-34s %12s %9s %9s\n", "linear", "out x in",
                "scheme", "us a product", "SQNR dB", "MiB");
  std::string table = line;
  for (const AutoquantChoice& choice : choices) {
    for (size_t i = 0; i < choice.trials.size(); ++i) {
      const SchemeTrial& trial = choice.trials[i];
      const std::string shape = std::to_string(choice.rows) + " x " + std::to_string(choice.cols);
      std::snprintf(line, sizeof line, "%s %-34s %-14s %-34s %12.1f %9.1f %9.3f\n",
                    i == choice.chosen ? "*" : " ", i == 0 ? choice.name.c_str() : "",
                    i == 0 ? shape.c_str() : "", trial.scheme.c_str(), 1e6 * trial.seconds,
                    trial.sqnr_db, static_cast<double>(trial.weight_bytes) / (1 << 20));
      table += line;
    }
  }
  return table;
}

}  // namespace narrowgauge::quantization
