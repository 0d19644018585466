#include "vgen/kernels/columns.h"

#include "vgen/kernels/detail/cuda_kernels.h"

namespace vgen::kernels {

bool is_column_sums_input(const at::Tensor& x_MN) {
  return is_cuda_input(x_MN, kAnyColumns) && x_MN.dim() == 2 && x_MN.is_contiguous();
}

at::Tensor column_sums(const at::Tensor& x_MN) {
  TORCH_INTERNAL_ASSERT(is_column_sums_input(x_MN));
  return cuda_kernels()->column_sums(x_MN);
}

}  // namespace vgen::kernels
