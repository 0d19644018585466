// Compiled with AVX2 and FMA on x86-64.
#include "vgen/kernels/detail/decode_sets.h"

#if defined(__AVX2__) && defined(__FMA__)

#include <immintrin.h>

#define VGEN_SIMD_WIDTH 8
#include "vgen/kernels/detail/decode_vectors.h"

namespace vgen::kernels {
namespace {

inline Ints widen_int8(const std::byte* from) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return __builtin_bit_cast(Ints, _mm256_cvtepi8_epi32(bytes));
}

}  // namespace
}  // namespace vgen::kernels

#include "vgen/kernels/detail/decode_simd.h"

namespace vgen::kernels {
const DecodeKernels* decode_avx2() { return &kKernels; }
}  // namespace vgen::kernels

#else

namespace vgen::kernels {
const DecodeKernels* decode_avx2() { return nullptr; }
}  // namespace vgen::kernels

#endif
