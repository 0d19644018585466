#include "vgen/kernels/detail/image_kernels.h"

#if defined(__AVX512F__)

#define VGEN_SIMD_WIDTH 16
#define VGEN_SIMD_ROWS 12
#define VGEN_SIMD_ISA CpuIsa::kAvx512
#include "vgen/kernels/detail/image_table.h"

namespace vgen::kernels {
const ImageKernels* image_kernels_avx512() { return &kKernels; }
}  // namespace vgen::kernels

#else

namespace vgen::kernels {
const ImageKernels* image_kernels_avx512() { return nullptr; }
}  // namespace vgen::kernels

#endif
