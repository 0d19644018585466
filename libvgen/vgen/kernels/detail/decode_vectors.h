#pragma once
// Vectors of kWidth floats for the decoding kernels.
//
// Included once by each decode_<isa>.cpp, which is compiled with flags of its own. All names are in
// an anonymous namespace and nothing of the standard library is called: an inline function compiled
// with AVX-512 here must never be the copy that the linker keeps for the rest of the program.
// Vectors are those of GCC and Clang, so that all levels share one text and one test.

#ifndef VGEN_SIMD_WIDTH
#error "the source of an instruction set defines VGEN_SIMD_WIDTH"
#endif

#include <cstddef>
#include <cstdint>

#include "vgen/kernels/decode_kernels.h"

namespace vgen::kernels {
namespace {

constexpr int kWidth = VGEN_SIMD_WIDTH;
using Floats [[gnu::vector_size(kWidth * 4)]] = float;
using Ints [[gnu::vector_size(kWidth * 4)]] = int32_t;
using Words [[gnu::vector_size(kWidth * 4)]] = uint32_t;

template <class Vector>
inline Vector load(const void* from) {
  Vector value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}
inline void store(float* to, Floats value) { __builtin_memcpy(to, &value, sizeof(value)); }
// Subtracting zero changes nothing, and the compiler knows it; adding it would turn -0 into 0.
inline Floats broadcast(float value) { return value - Floats{}; }
inline Floats as_floats(Words bits) { return __builtin_bit_cast(Floats, bits); }
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// A vector of bfloat16 pairs, the first of each pair in the low half.
inline Floats first_of_pairs(Words pairs) { return as_floats(pairs << 16); }
inline Floats second_of_pairs(Words pairs) { return as_floats(pairs & 0xffff0000u); }

// e^x, relative error below 2e-7 on [-87, 88]; outside x is clamped (Cephes' expf).
inline Floats exponential(Floats x) {
  x = larger(x, broadcast(-87.0f));
  x = x < broadcast(88.0f) ? x : broadcast(88.0f);
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the low bits
  const Floats shifted = x * 1.44269504f + kRound;
  const Floats n = shifted - kRound;
  const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Ints exponent = __builtin_convertvector(n, Ints) + 127;
  const Words bits = __builtin_bit_cast(Words, exponent) << 23;
  return p * as_floats(bits);
}

template <Storage kStorage>
constexpr int64_t weight_bytes(int64_t count) {
  return count * (kStorage == Storage::kFloat32 ? 4 : kStorage == Storage::kBFloat16 ? 2 : 1);
}

}  // namespace
}  // namespace vgen::kernels
