#pragma once
// Vectors of float for the image and row kernels. Included once by image_<isa>.cpp and by
// rows_<isa>.cpp after the width is known; everything is local to that source, so that no function
// compiled for one instruction set can be linked into another. No templates of the standard library
// here for the same reason.
#ifndef VGEN_SIMD_WIDTH
#error "the source of an instruction set defines VGEN_SIMD_WIDTH"
#endif

#include <cstdint>
#include <cstring>

namespace vgen::kernels {
namespace {

constexpr int64_t kWidth = VGEN_SIMD_WIDTH;
typedef float Floats __attribute__((vector_size(kWidth * 4)));
typedef int32_t Ints __attribute__((vector_size(kWidth * 4)));
typedef uint32_t Words __attribute__((vector_size(kWidth * 4)));
typedef uint16_t Halves __attribute__((vector_size(kWidth * 2)));
using Bf16 = uint16_t;  ///< the bits of a bfloat16

/// x - 0 is x for the compiler too, where 0 + x is not because of -0.
inline Floats splat(float value) { return value - Floats{}; }

inline Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}
inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof(value)); }

inline Floats load(const Bf16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof(halves));
  const Words words = __builtin_convertvector(halves, Words) << 16;
  Floats value;
  std::memcpy(&value, &words, sizeof(value));
  return value;
}
/// Rounds to nearest, ties to even; a NaN stays one.
inline void store(Bf16* to, Floats value) {
  Words words;
  std::memcpy(&words, &value, sizeof(words));
  const Words rounded = (words + 0x7fffu + ((words >> 16) & 1u)) >> 16;
  const Words is_nan = (Words)(value != value);
  const Words bits = (rounded & ~is_nan) | (is_nan & 0x7fc0u);
  const Halves halves = __builtin_convertvector(bits, Halves);
  std::memcpy(to, &halves, sizeof(halves));
}

/// The first `count` lanes; the others are zero and are not touched.
template <class T>
inline Floats load_some(const T* from, int64_t count) {
  if (count >= kWidth) return load(from);
  T lanes[kWidth] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = from[i];
  return load(lanes);
}
template <class T>
inline void store_some(T* to, Floats value, int64_t count) {
  if (count >= kWidth) return store(to, value);
  T lanes[kWidth];
  store(lanes, value);
  for (int64_t i = 0; i < count; ++i) to[i] = lanes[i];
}

/// body(T{}) with T the type of the elements.
template <class Body>
inline void by_type(bool is_bf16, const Body& body) {
  if (is_bf16) {
    body(Bf16{});
  } else {
    body(float{});
  }
}

/// e^x within 2 units in the last place; arguments beyond +-87 are taken as that.
inline Floats exp(Floats x) {
  const Floats low = splat(-87.0f), high = splat(87.0f);
  x = x < low ? low : x;
  x = x > high ? high : x;
  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const Floats shifted = x * 1.44269504f + 12582912.0f;
  const Floats n = shifted - 12582912.0f;
  const Floats r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  Floats p = splat(1.98756915e-4f);
  p = p * r + 1.39819995e-3f;
  p = p * r + 8.33345205e-3f;
  p = p * r + 4.16657962e-2f;
  p = p * r + 1.66666657e-1f;
  p = p * r + 5.00000012e-1f;
  p = (p * r) * r + r + 1.0f;
  Ints bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits <<= 23;  // n in the exponent, what is above it is shifted out
  Ints value;
  std::memcpy(&value, &p, sizeof(value));
  value += bits;
  std::memcpy(&p, &value, sizeof(p));
  return p;
}

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exp(-x)); }

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace
}  // namespace vgen::kernels
