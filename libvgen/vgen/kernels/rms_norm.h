#pragma once
// RMSNorm over rows (arXiv:1910.07467) and its gradients in one pass each. C columns, N rows. No
// autograd here: nn/rms_norm.h has it. Results do not depend on the number of threads. All
// functions may be called from several threads.

#include <ATen/core/Tensor.h>

#include "vgen/kernels/cpu_isa.h"

namespace vgen::kernels {

/// Whether x (..., C) with a weight (C) can be normalised here: float32 and bfloat16 on the CPU,
/// all of is_cuda_input() (detail/cuda_kernels.h) on CUDA.
bool is_rms_norm_input(const at::Tensor& x, const at::Tensor& weight_C);

struct RmsNormResult {
  at::Tensor y;       ///< shape of x
  at::Tensor rstd_N;  ///< float32: 1 / sqrt(mean(x^2) + eps) of each row
};
/// cast(x rstd) weight, the cast to the dtype of x, all else in float32, rounded to `dtype`, one
/// that x can have.
RmsNormResult rms_norm(const at::Tensor& x, const at::Tensor& weight_C, double eps,
                       at::ScalarType dtype, CpuIsa isa = best_cpu_isa());

struct RmsNormGradients {
  at::Tensor x, weight_C;  ///< the dtypes of x and weight
};
/// dy: gradient to y, its dtype.
RmsNormGradients rms_norm_gradient(const at::Tensor& x, const at::Tensor& weight_C,
                                   const at::Tensor& rstd_N, const at::Tensor& dy,
                                   CpuIsa isa = best_cpu_isa());

}  // namespace vgen::kernels
