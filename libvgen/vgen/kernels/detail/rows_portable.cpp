#define VGEN_SIMD_WIDTH 4
#define VGEN_SIMD_ISA CpuIsa::kPortable
#include "vgen/kernels/detail/rows_simd.h"

namespace vgen::kernels {
namespace {

inline Pairs multiply_low(Pairs x, uint32_t factor) { return (x & 0xffffffffu) * factor; }

}  // namespace
}  // namespace vgen::kernels

#include "vgen/kernels/detail/rows_table.h"

namespace vgen::kernels {
const RowKernels* row_kernels_portable() { return &kKernels; }
}  // namespace vgen::kernels
