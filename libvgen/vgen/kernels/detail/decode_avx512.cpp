// Compiled with AVX-512 F, BW, DQ, VL on x86-64.
#include "vgen/kernels/detail/decode_sets.h"

#if defined(__AVX512F__)

#include <immintrin.h>

#define VGEN_SIMD_WIDTH 16
#include "vgen/kernels/detail/decode_vectors.h"

namespace vgen::kernels {
namespace {

inline Ints widen_int8(const std::byte* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return __builtin_bit_cast(Ints, _mm512_maskz_cvtepi8_epi32(0xffff, bytes));
}

}  // namespace
}  // namespace vgen::kernels

#include "vgen/kernels/detail/decode_simd.h"

namespace vgen::kernels {
const DecodeKernels* decode_avx512() { return &kKernels; }
}  // namespace vgen::kernels

#else

namespace vgen::kernels {
const DecodeKernels* decode_avx512() { return nullptr; }
}  // namespace vgen::kernels

#endif
