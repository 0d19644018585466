#include "vgen/kernels/detail/row_kernels.h"

#if defined(__AVX512F__)

#define VGEN_SIMD_WIDTH 16
#define VGEN_SIMD_ISA CpuIsa::kAvx512
#include "vgen/kernels/detail/rows_table.h"

namespace vgen::kernels {
const RowKernels* row_kernels_avx512() { return &kKernels; }
}  // namespace vgen::kernels

#else

namespace vgen::kernels {
const RowKernels* row_kernels_avx512() { return nullptr; }
}  // namespace vgen::kernels

#endif
