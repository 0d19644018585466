#include "vgen/kernels/detail/row_kernels.h"

#if defined(__AVX2__)

#include <immintrin.h>

#define VGEN_SIMD_WIDTH 8
#define VGEN_SIMD_ISA CpuIsa::kAvx2
#include "vgen/kernels/detail/rows_simd.h"

namespace vgen::kernels {
namespace {

inline Pairs multiply_low(Pairs x, uint32_t factor) {
  return (Pairs)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi32(static_cast<int>(factor)));
}

}  // namespace
}  // namespace vgen::kernels

#include "vgen/kernels/detail/rows_table.h"

namespace vgen::kernels {
const RowKernels* row_kernels_avx2() { return &kKernels; }
}  // namespace vgen::kernels

#else

namespace vgen::kernels {
const RowKernels* row_kernels_avx2() { return nullptr; }
}  // namespace vgen::kernels

#endif
