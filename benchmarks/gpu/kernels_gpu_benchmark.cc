// Kernels on a GPU beside the bandwidth of a copy, measured in the same run. Prints one line a
// kernel: microseconds (median of kRepeats, timed by events), the bytes it must move, GB/s and the
// share of the copy's GB/s; attention prints TFLOP/s. Data are random and larger than the
// last-level cache.
//   kernels_gpu_benchmark [FILTER]     only kernels whose name contains FILTER

#include <ATen/Context.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "benchmarks/gpu/kernel_benchmark.h"
#include "cuda/launch_scope.h"
#include "cuda/libtorch_cuda.h"
#include "float8/cast.h"
#include "float8/scaled_mm.h"
#include "nn/cross_entropy.h"
#include "nn/rms_norm.h"
#include "nn/rotary_embedding.h"
#include "nn/swiglu.h"
#include "optim/adamw.h"

namespace narrowgauge {
namespace {

std::string named(const char* kernel, int64_t rows, int64_t columns) {
  return std::string(kernel) + " " + std::to_string(rows) + " x " + std::to_string(columns);
}

// The gradient of `output` in `inputs`' leaves, timed alone: the graph is kept.
std::function<void()> backward_of(const at::Tensor& output, const at::Tensor& grad,
                                  std::vector<at::Tensor> leaves) {
  return [=] {
    for (const at::Tensor& leaf : leaves) {
      leaf.mutable_grad() = at::Tensor();
    }
    output.backward(grad, /*retain_graph=*/true);
  };
}

void benchmark_norm(const Benchmark& b, int64_t rows, int64_t dim) {
  const auto elements = static_cast<double>(rows * dim);
  const at::Tensor weight = Benchmark::random({dim}, at::kFloat).requires_grad_();
  const at::Tensor x = Benchmark::random({rows, dim}, at::kBFloat16).requires_grad_();
  const at::Tensor residual = Benchmark::random({rows, dim}, at::kBFloat16).requires_grad_();
  const at::Tensor grad = Benchmark::random({rows, dim}, at::kBFloat16);
  b.run(named("rms_norm", rows, dim), 4 * elements, [&] { nn::rms_norm(x, weight, 1e-5); });
  b.run(named("rms_norm backward", rows, dim), 6 * elements,
        backward_of(nn::rms_norm(x, weight, 1e-5), grad, {x, weight}));
  b.run(named("add_rms_norm", rows, dim), 8 * elements,
        [&] { nn::add_rms_norm(residual, x, weight, 1e-5); });
}

void benchmark_swiglu(const Benchmark& b, int64_t rows, int64_t ffn) {
  const auto elements = static_cast<double>(rows * ffn);
  const at::Tensor gate_up = Benchmark::random({rows, 2 * ffn}, at::kBFloat16).requires_grad_();
  const at::Tensor grad = Benchmark::random({rows, ffn}, at::kBFloat16);
  for (const bool with_amax : {false, true}) {
    const std::string suffix = with_amax ? " with amax" : "";
    b.run(named("swiglu", rows, ffn) + suffix, 6 * elements,
          [&] { nn::swiglu(gate_up, with_amax); });
    b.run(named("swiglu backward", rows, ffn) + suffix, 10 * elements,
          backward_of(nn::swiglu(gate_up, with_amax), grad, {gate_up}));
  }
}

void benchmark_cross_entropy(const Benchmark& b, int64_t rows, int64_t vocab) {
  const auto elements = static_cast<double>(rows * vocab);
  const at::Tensor logits = Benchmark::random({rows, vocab}, at::kBFloat16).requires_grad_();
  const at::Tensor targets = at::randint(vocab, {rows}, at::kLong).cuda();
  b.run(named("cross_entropy", rows, vocab), 2 * elements,
        [&] { nn::cross_entropy_sum(logits, targets); });
  b.run(named("cross_entropy backward", rows, vocab), 4 * elements,
        backward_of(nn::cross_entropy_sum(logits, targets), {}, {logits}));
}

struct AttentionShape {
  int64_t batch, length, num_heads, num_kv_heads, head_dim;
};

void benchmark_rope(const Benchmark& b, AttentionShape s) {
  nn::TransformerConfig config;
  config.head_dim = s.head_dim;
  const nn::RotaryTable table = nn::make_rotary_table(config, s.length);
  const nn::RotaryTable on_gpu{table.cos.cuda(), table.sin.cuda()};
  const int64_t width = (s.num_heads + 2 * s.num_kv_heads) * s.head_dim;
  const at::Tensor qkv = Benchmark::random({s.batch, s.length, width}, at::kBFloat16);
  b.run(named("split_qkv_rope", s.batch * s.length, width), 2.0 * static_cast<double>(qkv.nbytes()),
        [&] {
          nn::split_qkv_rope(qkv, on_gpu, 0, {s.num_heads, s.num_kv_heads});
        });
}

// In the layout that split_qkv_rope gives.
void benchmark_attention(const Benchmark& b, const char* backend, AttentionShape s) {
  const auto make = [&](int64_t heads) {
    return Benchmark::random({s.batch, s.length, heads, s.head_dim}, at::kBFloat16)
        .transpose(1, 2)
        .requires_grad_();
  };
  const at::Tensor q = make(s.num_heads);
  const at::Tensor k = make(s.num_kv_heads);
  const at::Tensor v = make(s.num_kv_heads);
  const auto attend = [&] {
    return at::scaled_dot_product_attention(q, k, v, {}, 0.0, /*is_causal=*/true, std::nullopt,
                                            s.num_heads != s.num_kv_heads);
  };
  const double forward =
      2.0 * static_cast<double>(s.batch * s.num_heads * s.length * s.length * s.head_dim);
  const std::string shape = std::string(" ") + backend + " b" + std::to_string(s.batch) + " t" +
                            std::to_string(s.length) + " h" + std::to_string(s.num_heads) + "/" +
                            std::to_string(s.num_kv_heads) + " d" + std::to_string(s.head_dim);
  b.run_flops("attention" + shape, forward, [&] { attend(); });
  const at::Tensor out = attend();
  b.run_flops("attention backward" + shape, 2.5 * forward,
              backward_of(out, at::empty_like(out).normal_(), {q, k, v}));
}

void benchmark_attention_backends(const Benchmark& b) {
  auto& context = at::globalContext();
  for (const char* backend : {"default", "flash", "cudnn"}) {
    const std::string name = backend;
    context.setSDPUseFlash(name != "cudnn");
    context.setSDPUseCuDNN(name != "flash");
    context.setSDPUseMemEfficient(false);
    context.setSDPUseMath(false);
    for (const AttentionShape shape :
         {AttentionShape{2, 8192, 32, 8, 128}, AttentionShape{4, 2048, 16, 4, 128},
          AttentionShape{8, 1024, 12, 12, 64}}) {
      try {
        benchmark_attention(b, backend, shape);
      } catch (const c10::Error& error) {
        std::printf("attention %s: %s\n", backend, error.what_without_backtrace());
      }
    }
  }
}

void benchmark_adamw(const Benchmark& b) {
  std::vector<at::Tensor> params;
  std::vector<std::string> names;
  double bytes = 0;
  for (int i = 0; i < 64; ++i) {
    params.push_back(Benchmark::random({4096, 1024}, at::kFloat));
    params.back().mutable_grad() = at::empty_like(params.back()).normal_();
    names.push_back(std::to_string(i));
    bytes += 28.0 * static_cast<double>(params.back().numel());
  }
  optim::AdamW optimizer({{names, params, 1.0, 0.1}}, {});
  b.run("adamw 64 x 4 Mi", bytes, [&] { optimizer.step(1e-3, 0.5); });
}

void benchmark_float8_casts(const Benchmark& b, int64_t rows, int64_t cols) {
  using float8::ScalingGranularity;
  const auto elements = static_cast<double>(rows * cols);
  const at::Tensor x = Benchmark::random({rows, cols}, at::kBFloat16);
  const at::Tensor scale = at::full({}, 1.0F).cuda();
  const float8::CastSpec tensorwise{};
  b.run(named("float8 amax tensorwise", rows, cols), 2 * elements,
        [&] { float8::tensor_to_amax(x, ScalingGranularity::kTensorwise, 1); });
  b.run(named("float8 amax axiswise dim 1", rows, cols), 2 * elements,
        [&] { float8::tensor_to_amax(x, ScalingGranularity::kAxiswise, 1); });
  b.run(named("float8 amax axiswise dim 0", rows, cols), 2 * elements,
        [&] { float8::tensor_to_amax(x, ScalingGranularity::kAxiswise, 0); });
  b.run(named("float8 amax 1x128", rows, cols), 2 * elements,
        [&] { float8::tensor_to_amax(x, ScalingGranularity::kBlockwise1x128, 1); });
  b.run(named("float8 cast by row", rows, cols), 3 * elements,
        [&] { float8::hp_tensor_and_scale_to_float8(x, scale, tensorwise, 1); });
  b.run(named("float8 cast by column", rows, cols), 3 * elements,
        [&] { float8::hp_tensor_and_scale_to_float8(x, scale, tensorwise, 0); });
  // Two reads of x at least: the scale depends on all of it.
  b.run(named("float8 dynamic tensorwise, both", rows, cols), 6 * elements,
        [&] { float8::hp_tensor_to_float8_both_dims(x, tensorwise, tensorwise); });
  const float8::CastSpec axiswise{at::kFloat8_e4m3fn, ScalingGranularity::kAxiswise};
  b.run(named("float8 dynamic axiswise, both", rows, cols), 6 * elements,
        [&] { float8::hp_tensor_to_float8_both_dims(x, axiswise, axiswise); });
  b.run(named("float8 known scale, both and amax", rows, cols), 4 * elements,
        [&] { float8::hp_tensor_and_scale_to_float8_both_dims(x, scale, tensorwise); });
}

// One linear's parts at the shapes of a model: what fp8 must be paid for with, beside what it
// saves.
void benchmark_float8_linear(const Benchmark& b, int64_t tokens, int64_t in, int64_t out) {
  using float8::ScalingGranularity;
  const std::string shape =
      " " + std::to_string(tokens) + " x " + std::to_string(in) + " x " + std::to_string(out);
  const double flops =
      2.0 * static_cast<double>(tokens) * static_cast<double>(in) * static_cast<double>(out);
  const at::Tensor x = Benchmark::random({tokens, in}, at::kBFloat16);
  const at::Tensor w = Benchmark::random({out, in}, at::kBFloat16);
  const at::Tensor g = Benchmark::random({tokens, out}, at::kBFloat16);
  b.run_flops("linear bf16 output" + shape, flops, [&] { at::linear(x, w); });
  b.run_flops("linear bf16 grad_input" + shape, flops, [&] { at::mm(g, w); });
  b.run_flops("linear bf16 grad_weight" + shape, flops, [&] { at::mm(g.t(), x); });
  const std::pair<const char*, float8::CastSpec> recipes[] = {
      {"tensorwise", {}},
      {"rowwise",
       {at::kFloat8_e4m3fn, ScalingGranularity::kAxiswise, float8::ScaleRounding::kPowerOf2}}};
  for (const auto& [name, spec] : recipes) {
    const std::string linear = std::string("linear ") + name;
    const auto x8 = float8::hp_tensor_to_float8_both_dims(x, spec, spec);
    const auto w8 = float8::hp_tensor_to_float8_both_dims(w, spec, spec);
    const auto g8 = float8::hp_tensor_to_float8_both_dims(g, spec, spec);
    for (const auto& [operand, value] : {std::pair{" cast input", x}, {" cast grad", g}}) {
      b.run(linear + operand + shape, 6.0 * static_cast<double>(value.numel()),
            [&, value = value] { float8::hp_tensor_to_float8_both_dims(value, spec, spec); });
    }
    for (const bool fast : {false, true}) {
      const std::string end = (fast ? ", fast" : "") + shape;
      b.run_flops(linear + " output" + end, flops,
                  [&] { float8::scaled_mm(x8.dim1, w8.dim1, at::kBFloat16, {}, fast); });
      b.run_flops(linear + " grad_input" + end, flops, [&] {
        float8::scaled_mm(g8.dim1, float8::transpose(w8.dim0), at::kBFloat16, {}, fast);
      });
      b.run_flops(linear + " grad_weight" + end, flops, [&] {
        float8::scaled_mm(float8::transpose(g8.dim0), float8::transpose(x8.dim0), at::kBFloat16, {},
                          fast);
      });
    }
  }
}

void benchmark_products(const Benchmark& b, int64_t m, int64_t k, int64_t n) {
  using float8::ScalingGranularity;
  const double flops =
      2.0 * static_cast<double>(m) * static_cast<double>(k) * static_cast<double>(n);
  const at::Tensor x = Benchmark::random({m, k}, at::kBFloat16);
  const at::Tensor w = Benchmark::random({n, k}, at::kBFloat16);
  const std::string shape =
      " " + std::to_string(m) + " x " + std::to_string(k) + " x " + std::to_string(n);
  b.run_flops("bf16 product" + shape, flops, [&] { at::linear(x, w); });
  const std::pair<const char*, std::pair<ScalingGranularity, ScalingGranularity>> recipes[] = {
      {"tensorwise", {ScalingGranularity::kTensorwise, ScalingGranularity::kTensorwise}},
      {"axiswise", {ScalingGranularity::kAxiswise, ScalingGranularity::kAxiswise}},
      {"1x128, 128x128",
       {ScalingGranularity::kBlockwise1x128, ScalingGranularity::kBlockwise128x128}}};
  for (const auto& [name, granularities] : recipes) {
    const auto a =
        float8::hp_tensor_to_float8_dynamic(x, {at::kFloat8_e4m3fn, granularities.first}, 1);
    const auto c =
        float8::hp_tensor_to_float8_dynamic(w, {at::kFloat8_e4m3fn, granularities.second}, 1);
    for (const bool fast : {false, true}) {
      b.run_flops(std::string("float8 product ") + name + (fast ? ", fast" : "") + shape, flops,
                  [&] { float8::scaled_mm(a, c, at::kBFloat16, {}, fast); });
    }
  }
}

void benchmark_all(const Benchmark& b) {
  for (const int64_t dim : {384, 768, 2048, 4096, 8192}) {
    benchmark_norm(b, (int64_t{1} << 26) / dim / 8 * 8, dim);
  }
  benchmark_swiglu(b, 8192, 14336);
  benchmark_swiglu(b, 32768, 3072);
  benchmark_rope(b, {2, 8192, 32, 8, 128});
  benchmark_rope(b, {32, 1024, 12, 12, 64});
  benchmark_cross_entropy(b, 4096, 128256);
  benchmark_cross_entropy(b, 8192, 50304);
  benchmark_adamw(b);
  benchmark_float8_casts(b, 16384, 4096);
  benchmark_float8_casts(b, 8192, 14336);
  benchmark_products(b, 8192, 4096, 14336);
  for (const auto& [in, out] : {std::pair{2048, 3072}, {2048, 2048}, {2048, 11264}, {5632, 2048}}) {
    benchmark_float8_linear(b, 8192, in, out);
  }
  benchmark_attention_backends(b);
}

}  // namespace
}  // namespace narrowgauge

int main(int argc, char** argv) {
  const std::string problem = narrowgauge::cuda::load_libtorch_cuda();
  if (!problem.empty()) {
    std::fprintf(stderr, "kernels_gpu_benchmark: %s\n", problem.c_str());
    return 1;
  }
  narrowgauge::benchmark_all(narrowgauge::Benchmark(argc > 1 ? argv[1] : ""));
  return 0;
}
