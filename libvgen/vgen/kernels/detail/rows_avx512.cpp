#include "vgen/kernels/detail/row_kernels.h"

#if defined(__AVX512F__)

#include <immintrin.h>

#define VGEN_SIMD_WIDTH 16
#define VGEN_SIMD_ISA CpuIsa::kAvx512
#include "vgen/kernels/detail/rows_simd.h"

namespace vgen::kernels {
namespace {

// The form without a mask reads, for GCC 12, a variable that was never set.
inline Pairs multiply_low(Pairs x, uint32_t factor) {
  const __m512i factors = _mm512_set1_epi32(static_cast<int>(factor));
  return (Pairs)_mm512_maskz_mul_epu32(0xff, (__m512i)x, factors);
}

}  // namespace
}  // namespace vgen::kernels

#include "vgen/kernels/detail/rows_table.h"

namespace vgen::kernels {
const RowKernels* row_kernels_avx512() { return &kKernels; }
}  // namespace vgen::kernels

#else

namespace vgen::kernels {
const RowKernels* row_kernels_avx512() { return nullptr; }
}  // namespace vgen::kernels

#endif
