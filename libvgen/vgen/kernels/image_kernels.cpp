#include "vgen/kernels/detail/image_kernels.h"

namespace vgen::kernels {

const ImageKernels& image_kernels(CpuIsa isa) {
  const CpuIsa best = best_cpu_isa();
  if (isa > best) isa = best;
  if (isa >= CpuIsa::kAvx512 && image_kernels_avx512() != nullptr) return *image_kernels_avx512();
  if (isa >= CpuIsa::kAvx2 && image_kernels_avx2() != nullptr) return *image_kernels_avx2();
  return *image_kernels_portable();
}

}  // namespace vgen::kernels
