// In a build without CUDA.
#include "vgen/kernels/detail/cuda_kernels.h"

namespace vgen::kernels {

const CudaKernels* cuda_kernels() { return nullptr; }

bool is_cuda_input(const at::Tensor&, int64_t) { return false; }

}  // namespace vgen::kernels
