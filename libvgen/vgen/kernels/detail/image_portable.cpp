#include "vgen/kernels/detail/image_kernels.h"

#if 1

#define VGEN_SIMD_WIDTH 4
#define VGEN_SIMD_ROWS 6
#define VGEN_SIMD_ISA CpuIsa::kPortable
#include "vgen/kernels/detail/image_table.h"

namespace vgen::kernels {
const ImageKernels* image_kernels_portable() { return &kKernels; }
}  // namespace vgen::kernels

#else

namespace vgen::kernels {
const ImageKernels* image_kernels_portable() { return nullptr; }
}  // namespace vgen::kernels

#endif
