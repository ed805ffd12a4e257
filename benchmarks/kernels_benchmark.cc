// Bytes a second of the CPU kernels on one thread, beside a copy of the same number of bytes, in
// the shapes of configs/bench/llama_12m.yaml: 2048 tokens, dim 384, ffn 1024, vocabulary 4096,
// 6 heads and 2 key/value heads of 64, bf16 activations; AdamW over one fp32 matrix of 4 MB.
//   bazel run //benchmarks:kernels_benchmark
// BM_X/0 copies as many bytes as BM_X/1, the kernel, reads and writes: their ratio is the share of
// the machine's own speed.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "float8/kernels/cast.h"
#include "float8/kernels/scaled_gemm.h"
#include "nn/kernels/attention.h"
#include "nn/kernels/cross_entropy.h"
#include "nn/kernels/embedding_lookup.h"
#include "nn/kernels/normal_init.h"
#include "nn/kernels/rms_norm.h"
#include "nn/kernels/rotary_embedding.h"
#include "nn/kernels/swiglu.h"
#include "optim/kernels/adamw.h"
#include "vectorize/bfloat16.h"

namespace narrowgauge {
namespace {

using Bf16s = std::vector<uint16_t>;
using Floats = std::vector<float>;

constexpr int64_t kRows = 2048;
constexpr int64_t kDim = 384;
constexpr int64_t kFfn = 1024;
constexpr int64_t kVocab = 4096;

// Values around 1 of varying sign and mantissa.
Bf16s bf16s(int64_t count) {
  Bf16s values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<uint16_t>(0x3f00U + (i * 37U) % 0x0100U + ((i & 1U) << 15));
  }
  return values;
}

Floats floats(int64_t count, float value) { return Floats(static_cast<size_t>(count), value); }

// Runs `kernel`, which reads and writes `bytes` in all, or for range(0) == 0 a copy of as many.
template <typename Kernel>
void run(benchmark::State& state, int64_t bytes, const Kernel& kernel) {
  std::vector<char> from(static_cast<size_t>(bytes / 2), 1);
  std::vector<char> to(from.size());
  for (auto step : state) {
    if (state.range(0) == 0) {
      std::memcpy(to.data(), from.data(), from.size());
    } else {
      kernel();
    }
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * bytes);
  state.SetLabel(state.range(0) == 0 ? "copy" : "kernel");
}

void BM_RmsNorm(benchmark::State& state) {
  const Bf16s x = bf16s(kRows * kDim);
  const Floats weight = floats(kDim, 1);
  Bf16s y(x.size());
  Floats rstd = floats(kRows, 0);
  run(state, kRows * kDim * 4, [&] {
    nn::kernels::rms_norm(x.data(), weight.data(), y.data(), rstd.data(), kRows, kDim, 1e-5F);
  });
}

void BM_AddRmsNorm(benchmark::State& state) {
  const Bf16s x = bf16s(kRows * kDim);
  const Floats weight = floats(kDim, 1);
  Bf16s h(x.size());
  Bf16s y(x.size());
  Floats rstd = floats(kRows, 0);
  run(state, kRows * kDim * 8, [&] {
    nn::kernels::add_rms_norm(x.data(), x.data(), weight.data(), h.data(), y.data(), rstd.data(),
                              kRows, kDim, 1e-5F);
  });
}

void BM_AddRmsNormBackward(benchmark::State& state) {
  const Bf16s x = bf16s(kRows * kDim);
  const Bf16s grad_y = x;
  const Bf16s grad_h = x;
  const Floats weight = floats(kDim, 1);
  const Floats rstd = floats(kRows, 1);
  Bf16s grad_x(x.size());
  Floats grad_weight = floats(kDim, 0);
  run(state, kRows * kDim * 8, [&] {
    nn::kernels::rms_norm_backward(grad_y.data(), grad_h.data(), x.data(), weight.data(),
                                   rstd.data(), grad_x.data(), grad_weight.data(), kRows, kDim);
  });
}

void BM_SwiGLU(benchmark::State& state) {
  const Bf16s gate_up = bf16s(kRows * 2 * kFfn);
  Bf16s out(static_cast<size_t>(kRows * kFfn));
  run(state, kRows * kFfn * 6,
      [&] { nn::kernels::swiglu(gate_up.data(), out.data(), kRows, kFfn); });
}

void BM_SwiGLUBackward(benchmark::State& state) {
  const Bf16s gate_up = bf16s(kRows * 2 * kFfn);
  const Bf16s grad = bf16s(kRows * kFfn);
  Bf16s out(gate_up.size());
  run(state, kRows * kFfn * 10,
      [&] { nn::kernels::swiglu_backward(grad.data(), gate_up.data(), out.data(), kRows, kFfn); });
}

void BM_SplitAndRotate(benchmark::State& state) {
  constexpr int64_t kLength = 256;
  constexpr int64_t kHeadDim = 64;
  constexpr int64_t kHeads = 6;
  constexpr int64_t kKvHeads = 2;
  const Bf16s qkv = bf16s(kRows * (kHeads + 2 * kKvHeads) * kHeadDim);
  const Floats cosine = floats(kLength * kHeadDim / 2, 0.6F);
  const Floats sine = floats(kLength * kHeadDim / 2, 0.8F);
  Bf16s q(static_cast<size_t>(kRows * kHeads * kHeadDim));
  Bf16s k(static_cast<size_t>(kRows * kKvHeads * kHeadDim));
  Bf16s v(k.size());
  constexpr int64_t kHead = kLength * kHeadDim;
  const nn::kernels::QkvHeads<uint16_t> out{{q.data(), kHeads * kHead, kHead, kHeadDim},
                                            {k.data(), kKvHeads * kHead, kHead, kHeadDim},
                                            {v.data(), kKvHeads * kHead, kHead, kHeadDim}};
  run(state, static_cast<int64_t>(qkv.size()) * 4, [&] {
    nn::kernels::split_and_rotate(qkv.data(), out, cosine.data(), sine.data(),
                                  {kLength, kHeads, kKvHeads, kHeadDim}, 0, kRows);
  });
}

// Sequences of `length` up to 2048 tokens in all; items are flops, of the visible half of the
// scores alone. Compare with BM_Float8ScaledGemm, a product without anything around it.
template <typename T>
class AttentionRun {
 public:
  AttentionRun(nn::kernels::AttentionKernel<T> kernel, int64_t length, int64_t head_dim)
      : kernel_(kernel),
        shape_{kRows / length, length, 6, 2, head_dim},
        qkv_(static_cast<size_t>(kRows * shape_.qkv_row())),
        out_(static_cast<size_t>(kRows * shape_.out_row())),
        grad_out_(out_.size()),
        grad_qkv_(qkv_.size()),
        log_sum_exp_(static_cast<size_t>(kRows * shape_.num_heads)),
        cosine_(floats(length * head_dim / 2, 0.6F)),
        sine_(floats(length * head_dim / 2, 0.8F)),
        packed_(static_cast<size_t>(kernel.packed_size(shape_) + kLine)),
        scratch_(static_cast<size_t>(kLine + std::max(kernel.forward_scratch_size(shape_),
                                                      kernel.backward_scratch_size(shape_)))) {
    const Bf16s values = bf16s(kRows * shape_.qkv_row());
    std::transform(values.begin(), values.end(), qkv_.begin(), value_of);
    std::transform(values.begin(), values.begin() + static_cast<int64_t>(out_.size()),
                   grad_out_.begin(), value_of);
  }
  void forward() {
    kernel_.pack_keys_values(input(), line_of(packed_), 0, shape_.batch * shape_.num_kv_heads);
    kernel_.forward(input(), line_of(packed_), out_.data(), log_sum_exp_.data(), line_of(scratch_),
                    0, shape_.batch * shape_.num_heads * shape_.num_query_blocks());
  }
  void backward() {
    kernel_.backward(input(),
                     {out_.data(), log_sum_exp_.data(), grad_out_.data(), grad_qkv_.data()},
                     line_of(scratch_), 0, shape_.batch * shape_.num_kv_heads);
  }
  int64_t forward_flops() const {
    return 2 * kRows * (shape_.length + 1) * shape_.num_heads * shape_.head_dim;
  }

 private:
  static T value_of(uint16_t bits) {
    if constexpr (std::is_same_v<T, float>) {
      return vectorize::to_float(bits);
    } else {
      return bits;
    }
  }
  // Where the first whole cache line of `memory` begins.
  static float* line_of(Floats& memory) {
    void* begin = memory.data();
    size_t size_bytes = memory.size() * sizeof(float);
    return static_cast<float*>(std::align(64, 64, begin, size_bytes));
  }
  nn::kernels::AttentionInput<T> input() const {
    return {qkv_.data(), cosine_.data(), sine_.data(), shape_};
  }

  static constexpr int64_t kLine = 16;  // floats of a cache line

  nn::kernels::AttentionKernel<T> kernel_;
  nn::kernels::AttentionShape shape_;
  std::vector<T> qkv_;
  std::vector<T> out_;
  std::vector<T> grad_out_;
  std::vector<T> grad_qkv_;
  Floats log_sum_exp_;
  Floats cosine_;
  Floats sine_;
  Floats packed_;
  Floats scratch_;
};

template <typename T>
void run_attention(benchmark::State& state, nn::kernels::AttentionKernel<T> kernel) {
  AttentionRun<T> run(kernel, state.range(0), state.range(1));
  const bool is_forward = state.range(2) == 0;
  run.forward();
  for (auto step : state) {
    if (is_forward) {
      run.forward();
    } else {
      run.backward();
    }
    benchmark::ClobberMemory();
  }
  // Backward: five products for forward's two.
  state.SetItemsProcessed(state.iterations() * run.forward_flops() * (is_forward ? 2 : 5) / 2);
  state.SetLabel(is_forward ? "forward" : "backward");
}

void BM_Attention(benchmark::State& state) {
  if (!nn::kernels::has_avx512_attention()) {
    state.SkipWithError("needs AVX512-BF16");
    return;
  }
  run_attention(state, nn::kernels::avx512_attention());
}

void BM_AttentionPortable(benchmark::State& state) {
  run_attention(state, nn::kernels::portable_attention_bf16());
}

void BM_AttentionFloat(benchmark::State& state) {
  run_attention(state, nn::kernels::portable_attention_float());
}

void BM_CrossEntropyToGradient(benchmark::State& state) {
  Bf16s logits = bf16s(kRows * kVocab);
  const std::vector<int64_t> targets(static_cast<size_t>(kRows), 7);
  Floats loss = floats(kRows, 0);
  run(state, kRows * kVocab * 4, [&] {
    nn::kernels::cross_entropy_to_gradient(logits.data(), targets.data(), loss.data(), 5e-4F, kRows,
                                           kVocab, -100);
  });
}

void BM_CrossEntropy(benchmark::State& state) {
  const Bf16s logits = bf16s(kRows * kVocab);
  const std::vector<int64_t> targets(static_cast<size_t>(kRows), 7);
  Floats log_sum_exp = floats(kRows, 0);
  Floats loss = floats(kRows, 0);
  run(state, kRows * kVocab * 2, [&] {
    nn::kernels::cross_entropy(logits.data(), targets.data(), log_sum_exp.data(), loss.data(),
                               kRows, kVocab, -100);
  });
}

void BM_CrossEntropyBackward(benchmark::State& state) {
  const Bf16s logits = bf16s(kRows * kVocab);
  const std::vector<int64_t> targets(static_cast<size_t>(kRows), 7);
  const Floats log_sum_exp = floats(kRows, 8.5F);
  Bf16s grad(logits.size());
  run(state, kRows * kVocab * 4, [&] {
    nn::kernels::cross_entropy_backward(logits.data(), targets.data(), log_sum_exp.data(), 5e-4F,
                                        grad.data(), kRows, kVocab, -100);
  });
}

void BM_SumRows(benchmark::State& state) {
  const Bf16s rows = bf16s(kRows * kDim);
  std::vector<int64_t> order(static_cast<size_t>(kRows));
  for (size_t i = 0; i < order.size(); ++i) {
    order[i] = static_cast<int64_t>((i * 997) % order.size());
  }
  Floats scratch = floats(kDim, 0);
  Bf16s out(static_cast<size_t>(kRows / 4 * kDim));
  run(state, kRows * kDim * 2 + kRows / 4 * kDim * 2, [&] {
    for (int64_t row = 0; row < kRows / 4; ++row) {
      nn::kernels::sum_rows(rows.data(), order.data() + row * 4, 4, kDim, scratch.data(),
                            out.data() + row * kDim);
    }
  });
}

void BM_FillNormal(benchmark::State& state) {
  Floats out = floats(1 << 20, 0);
  run(state, 4 << 20, [&] {
    nn::kernels::fill_normal(out.data(), 0, static_cast<int64_t>(out.size()), {1, 2}, 0, 0.02F);
  });
}

void BM_AdamW(benchmark::State& state) {
  constexpr int64_t kCount = 1 << 20;
  Floats param = floats(kCount, 1);
  const Floats grad = floats(kCount, 1e-3F);
  Floats exp_avg = floats(kCount, 0);
  Floats exp_avg_sq = floats(kCount, 0);
  const optim::kernels::AdamWCoefficients coefficients{1.0F,  0.9999F, 0.1F,  0.95F,
                                                       0.05F, 0.5F,    1e-8F, -1e-4F};
  run(state, kCount * 28, [&] {
    optim::kernels::adamw(param.data(), grad.data(), exp_avg.data(), exp_avg_sq.data(), kCount,
                          coefficients);
  });
}

// Casts of activations [2048, 1024]; elements/s beside bytes/s.
using float8::kernels::Float8Format;
using float8::kernels::ScaleGroups;

constexpr int64_t kCount = kRows * kFfn;
constexpr ScaleGroups kTensorwise{kRows, kFfn};
constexpr ScaleGroups kRowwise{1, kFfn};
constexpr ScaleGroups kColumnwise{kRows, 1};
constexpr ScaleGroups kBlocks{1, 128};

template <typename Kernel>
void run_elements(benchmark::State& state, int64_t bytes_an_element, const Kernel& kernel) {
  run(state, kCount * bytes_an_element, kernel);
  state.SetItemsProcessed(state.iterations() * kCount);
}

void BM_Float8Amax(benchmark::State& state, ScaleGroups groups) {
  const Bf16s x = bf16s(kCount);
  Floats amax = floats(kCount, 0);
  run_elements(state, 2,
               [&] { float8::kernels::amax(x.data(), kRows, kFfn, groups, amax.data()); });
}

void BM_Float8Cast(benchmark::State& state, Float8Format format, ScaleGroups groups,
                   bool with_amax) {
  const Bf16s x = bf16s(kCount);
  const Floats scale = floats(kCount, 3.7F);
  Floats amax = floats(kCount, 0);
  std::vector<uint8_t> codes(static_cast<size_t>(kCount));
  run_elements(state, 3, [&] {
    float8::kernels::cast(x.data(), kRows, kFfn, groups, scale.data(), format, codes.data(),
                          with_amax ? amax.data() : nullptr);
  });
}

template <typename T>
void run_decode(benchmark::State& state, Float8Format format) {
  std::vector<uint8_t> codes(static_cast<size_t>(kCount));
  for (size_t i = 0; i < codes.size(); ++i) {
    codes[i] = static_cast<uint8_t>(i * 37);
  }
  const float inverse_scale = 0.3F;
  std::vector<T> x(codes.size());
  run_elements(state, 1 + static_cast<int64_t>(sizeof(T)), [&] {
    float8::kernels::decode(codes.data(), kRows, kFfn, kTensorwise, &inverse_scale, format,
                            x.data());
  });
}

void BM_Float8DecodeToBf16(benchmark::State& state, Float8Format format) {
  run_decode<uint16_t>(state, format);
}

void BM_Float8DecodeToFp32(benchmark::State& state, Float8Format format) {
  run_decode<float>(state, format);
}

// y = x W^T of [2048, 1024] and [384, 1024], packing of W included; items are flops.
void BM_Float8ScaledGemm(benchmark::State& state, int64_t k_block, bool k_contiguous) {
  if (!float8::kernels::has_scaled_gemm()) {
    state.SkipWithError("needs AVX512-BF16");
    return;
  }
  const std::vector<uint8_t> codes(static_cast<size_t>(kCount), 0x38);
  const float8::kernels::Codes a = {codes.data(), Float8Format::kE4M3, k_contiguous ? kFfn : 1,
                                    k_contiguous ? 1 : kRows};
  const float8::kernels::Codes b = {codes.data(), Float8Format::kE4M3, k_contiguous ? kFfn : 1,
                                    k_contiguous ? 1 : kDim};
  const Floats scale = floats(kCount, 1);
  const float8::kernels::InverseScales a_scales{scale.data(), 0, 1, 1};
  const float8::kernels::InverseScales b_scales{scale.data(), 7, 1, 1};
  const int64_t panels = kDim / float8::kernels::kPanelCols;
  Bf16s packed(static_cast<size_t>(panels * float8::kernels::packed_panel_size(kFfn)));
  Bf16s y(static_cast<size_t>(kRows * kDim));
  Floats scratch(static_cast<size_t>(float8::kernels::scratch_size()));
  for (auto step : state) {
    float8::kernels::pack_panels(b, kDim, kFfn, 0, panels, packed.data());
    float8::kernels::scaled_gemm(
        a, a_scales, packed.data(), b_scales, kDim, kFfn, k_block, 0, kRows, 0, panels,
        {y.data(), kDim, float8::kernels::OutputType::kBFloat16, false, nullptr}, scratch.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * 2 * kRows * kDim * kFfn);
}

BENCHMARK_CAPTURE(BM_Float8Amax, tensorwise, kTensorwise)->Arg(1)->Arg(0);
BENCHMARK_CAPTURE(BM_Float8Amax, columnwise, kColumnwise)->Arg(1)->Arg(0);
BENCHMARK_CAPTURE(BM_Float8Amax, blocks, kBlocks)->Arg(1)->Arg(0);
BENCHMARK_CAPTURE(BM_Float8Cast, e4m3_tensorwise, Float8Format::kE4M3, kTensorwise, false)
    ->Arg(1)
    ->Arg(0);
BENCHMARK_CAPTURE(BM_Float8Cast, e5m2_tensorwise, Float8Format::kE5M2, kTensorwise, false)
    ->Arg(1)
    ->Arg(0);
BENCHMARK_CAPTURE(BM_Float8Cast, e4m3_with_amax, Float8Format::kE4M3, kTensorwise, true)
    ->Arg(1)
    ->Arg(0);
BENCHMARK_CAPTURE(BM_Float8Cast, e4m3_rowwise, Float8Format::kE4M3, kRowwise, false)
    ->Arg(1)
    ->Arg(0);
BENCHMARK_CAPTURE(BM_Float8Cast, e4m3_columnwise, Float8Format::kE4M3, kColumnwise, false)
    ->Arg(1)
    ->Arg(0);
BENCHMARK_CAPTURE(BM_Float8Cast, e4m3_blocks, Float8Format::kE4M3, kBlocks, false)->Arg(1)->Arg(0);
BENCHMARK_CAPTURE(BM_Float8DecodeToBf16, e4m3, Float8Format::kE4M3)->Arg(1)->Arg(0);
BENCHMARK_CAPTURE(BM_Float8DecodeToBf16, e5m2, Float8Format::kE5M2)->Arg(1)->Arg(0);
BENCHMARK_CAPTURE(BM_Float8DecodeToFp32, e4m3, Float8Format::kE4M3)->Arg(1)->Arg(0);
BENCHMARK_CAPTURE(BM_Float8ScaledGemm, one_scale, 0, true);
BENCHMARK_CAPTURE(BM_Float8ScaledGemm, one_scale_strided, 0, false);
BENCHMARK_CAPTURE(BM_Float8ScaledGemm, blocks_of_128, 128, true);
BENCHMARK_CAPTURE(BM_Float8ScaledGemm, blocks_of_32, 32, true);
BENCHMARK(BM_RmsNorm)->Arg(1)->Arg(0);
BENCHMARK(BM_AddRmsNorm)->Arg(1)->Arg(0);
BENCHMARK(BM_AddRmsNormBackward)->Arg(1)->Arg(0);
BENCHMARK(BM_SwiGLU)->Arg(1)->Arg(0);
BENCHMARK(BM_SwiGLUBackward)->Arg(1)->Arg(0);
BENCHMARK(BM_SplitAndRotate)->Arg(1)->Arg(0);
BENCHMARK(BM_Attention)->ArgsProduct({{256, 2048}, {64, 128}, {0, 1}});
BENCHMARK(BM_AttentionPortable)->ArgsProduct({{256}, {64}, {0, 1}});
BENCHMARK(BM_AttentionFloat)->ArgsProduct({{256}, {64}, {0, 1}});
BENCHMARK(BM_CrossEntropyToGradient)->Arg(1)->Arg(0);
BENCHMARK(BM_CrossEntropy)->Arg(1)->Arg(0);
BENCHMARK(BM_CrossEntropyBackward)->Arg(1)->Arg(0);
BENCHMARK(BM_SumRows)->Arg(1)->Arg(0);
BENCHMARK(BM_FillNormal)->Arg(1)->Arg(0);
BENCHMARK(BM_AdamW)->Arg(1)->Arg(0);

}  // namespace
}  // namespace narrowgauge
