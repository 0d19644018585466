#include "vgen/kernels/detail/row_kernels.h"

namespace vgen::kernels {

const RowKernels& row_kernels(CpuIsa isa) {
  const CpuIsa best = best_cpu_isa();
  if (isa > best) isa = best;
  if (isa >= CpuIsa::kAvx512 && row_kernels_avx512() != nullptr) return *row_kernels_avx512();
  if (isa >= CpuIsa::kAvx2 && row_kernels_avx2() != nullptr) return *row_kernels_avx2();
  return *row_kernels_portable();
}

}  // namespace vgen::kernels
