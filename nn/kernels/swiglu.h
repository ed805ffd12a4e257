#pragma once

#include <cstdint>

// T is float, or uint16_t for bf16. gate_up: [rows, 2 * ffn], gate first; out: [rows, ffn].
namespace narrowgauge::nn::kernels {

void swiglu(const float* gate_up, float* out, int64_t rows, int64_t ffn);
void swiglu(const uint16_t* gate_up, uint16_t* out, int64_t rows, int64_t ffn);

// grad_gate_up: [rows, 2 * ffn] out.
void swiglu_backward(const float* grad_out, const float* gate_up, float* grad_gate_up, int64_t rows,
                     int64_t ffn);
void swiglu_backward(const uint16_t* grad_out, const uint16_t* gate_up, uint16_t* grad_gate_up,
                     int64_t rows, int64_t ffn);

}  // namespace narrowgauge::nn::kernels
