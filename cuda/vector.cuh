#pragma once

#include <cstdint>

// Elements in memory are float, or uint16_t for bf16; in registers they are float. kWidth elements
// move at a time: 16 bytes' worth, or 1 where rows are not aligned.
namespace narrowgauge::cuda {

template <typename T>
inline constexpr int kLanes = 16 / sizeof(T);

// Rounds to nearest even; a NaN becomes the canonical one.
__device__ inline uint32_t to_bf16x2(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(uint16_t x) { return __uint_as_float(uint32_t{x} << 16); }

template <typename T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline uint16_t from_float<uint16_t>(float x) {
  return static_cast<uint16_t>(to_bf16x2(x, 0.0F));
}

template <typename T>
__device__ void load(const T* from, float (&to)[1]) {
  to[0] = to_float(*from);
}

__device__ inline void load(const float* from, float (&to)[4]) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  to[0] = v.x;
  to[1] = v.y;
  to[2] = v.z;
  to[3] = v.w;
}

__device__ inline void load(const float* from, float (&to)[8]) {
  const float4 a = reinterpret_cast<const float4*>(from)[0];
  const float4 b = reinterpret_cast<const float4*>(from)[1];
  to[0] = a.x;
  to[1] = a.y;
  to[2] = a.z;
  to[3] = a.w;
  to[4] = b.x;
  to[5] = b.y;
  to[6] = b.z;
  to[7] = b.w;
}

__device__ inline void load(const uint16_t* from, float (&to)[8]) {
  const uint4 v = *reinterpret_cast<const uint4*>(from);
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = __uint_as_float(words[i] << 16);
    to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000U);
  }
}

template <typename T>
__device__ void store(T* to, const float (&from)[1]) {
  *to = from_float<T>(from[0]);
}

__device__ inline void store(float* to, const float (&from)[4]) {
  *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
}

__device__ inline void store(float* to, const float (&from)[8]) {
  reinterpret_cast<float4*>(to)[0] = make_float4(from[0], from[1], from[2], from[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(from[4], from[5], from[6], from[7]);
}

__device__ inline void store(uint16_t* to, const float (&from)[8]) {
  *reinterpret_cast<uint4*>(to) =
      make_uint4(to_bf16x2(from[0], from[1]), to_bf16x2(from[2], from[3]),
                 to_bf16x2(from[4], from[5]), to_bf16x2(from[6], from[7]));
}

// What a store and a load would make of x.
template <typename T>
__device__ float rounded(float x) {
  return to_float(from_float<T>(x));
}

}  // namespace narrowgauge::cuda
