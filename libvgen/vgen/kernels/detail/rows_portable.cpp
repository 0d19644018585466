#define VGEN_SIMD_WIDTH 4
#define VGEN_SIMD_ISA CpuIsa::kPortable
#include "vgen/kernels/detail/rows_table.h"

namespace vgen::kernels {
const RowKernels* row_kernels_portable() { return &kKernels; }
}  // namespace vgen::kernels
