#pragma once
// Eight numbers at a time, and sums over a block.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "vgen/kernels/detail/cuda_rows.h"

namespace vgen::kernels {

constexpr int kVector = static_cast<int>(kVectorColumns);
constexpr unsigned kAllLanes = 0xffffffffU;
constexpr int kMaxWarps = 32;
constexpr int kMaxThreads = kMaxWarps * 32;

using Vector = float[kVector];

/// Eight from element `index` on, a multiple of 8.
__device__ inline void load(const Numbers& from, int64_t index, Vector& to) {
  if (from.type == Number::kFloat32) {
    const auto* data =
        reinterpret_cast<const float4*>(static_cast<const float*>(from.data) + index);
    const float4 low = data[0], high = data[1];
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
    return;
  }
  // Both narrow types have two bytes.
  const uint4 bits =
      *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(from.data) + index);
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = from.type == Number::kBFloat16
                            ? __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(words[i]))
                            : __half22float2(reinterpret_cast<const __half2&>(words[i]));
    to[2 * i] = pair.x, to[2 * i + 1] = pair.y;
  }
}

__device__ inline void store(const Vector& from, const Numbers& to, int64_t index) {
  if (to.type == Number::kFloat32) {
    auto* data = reinterpret_cast<float4*>(static_cast<float*>(to.data) + index);
    data[0] = make_float4(from[0], from[1], from[2], from[3]);
    data[1] = make_float4(from[4], from[5], from[6], from[7]);
    return;
  }
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (to.type == Number::kBFloat16) {
      reinterpret_cast<__nv_bfloat162&>(words[i]) =
          __floats2bfloat162_rn(from[2 * i], from[2 * i + 1]);
    } else {
      reinterpret_cast<__half2&>(words[i]) = __floats2half2_rn(from[2 * i], from[2 * i + 1]);
    }
  }
  *reinterpret_cast<uint4*>(static_cast<uint16_t*>(to.data) + index) =
      make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ inline float rounded(float value, Number type) {
  if (type == Number::kBFloat16) return __bfloat162float(__float2bfloat16_rn(value));
  if (type == Number::kFloat16) return __half2float(__float2half_rn(value));
  return value;
}

__device__ inline float sigmoid(float x) { return 1 / (1 + __expf(-x)); }

__device__ inline float dot(const Vector& a, const Vector& b) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kVector; ++i) sum += a[i] * b[i];
  return sum;
}

/// Sum over the threads of a head, a power of two side by side in a warp.
__device__ inline float head_sum(float value, int threads) {
  for (int offset = threads / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

/// Turns four pairs; rope: their cosines and sines. is_inverse: by the opposite angles.
__device__ inline void turn(Vector& x, const Vector& rope, bool is_inverse = false) {
#pragma unroll
  for (int i = 0; i < kVector; i += 2) {
    const float cosine = rope[i], sine = is_inverse ? -rope[i + 1] : rope[i + 1];
    const float even = x[i], odd = x[i + 1];
    x[i] = even * cosine - odd * sine;
    x[i + 1] = odd * cosine + even * sine;
  }
}

/// Of factors of a sample.
__device__ inline void load(const Factors& from, int64_t sample, int64_t column, Vector& to) {
  load(from.numbers, sample * from.sample_stride + column, to);
}

/// Room of block_sum: two halves, used in turn, so that one barrier is enough.
template <int kCount>
struct SumRoom {
  float values[2][kCount][kMaxWarps];
};

/// The sum over all threads of a block of whole warps, in every thread. `turn` counts the calls.
template <int kCount>
__device__ inline void block_sum(float (&values)[kCount], SumRoom<kCount>& room, int& turn) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      values[i] += __shfl_xor_sync(kAllLanes, values[i], offset);
    }
  }
  const int warps = static_cast<int>(blockDim.x) / 32;
  if (warps == 1) return;
  auto& half = room.values[turn++ % 2];
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) half[i][threadIdx.x / 32] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    values[i] = 0;
    for (int w = 0; w < warps; ++w) values[i] += half[i][w];
  }
}

}  // namespace vgen::kernels
