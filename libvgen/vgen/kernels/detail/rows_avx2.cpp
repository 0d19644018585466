#include "vgen/kernels/detail/row_kernels.h"

#if defined(__AVX2__)

#define VGEN_SIMD_WIDTH 8
#define VGEN_SIMD_ISA CpuIsa::kAvx2
#include "vgen/kernels/detail/rows_table.h"

namespace vgen::kernels {
const RowKernels* row_kernels_avx2() { return &kKernels; }
}  // namespace vgen::kernels

#else

namespace vgen::kernels {
const RowKernels* row_kernels_avx2() { return nullptr; }
}  // namespace vgen::kernels

#endif
