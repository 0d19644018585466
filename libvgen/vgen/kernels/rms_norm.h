#pragma once
// RMSNorm over rows (arXiv:1910.07467) and its gradients in one pass each, on the CPU. C columns, N
// rows. No autograd here: nn/rms_norm.h has it. Results do not depend on the number of threads. All
// functions may be called from several threads.

#include <ATen/core/Tensor.h>

#include "vgen/kernels/cpu_isa.h"

namespace vgen::kernels {

/// Whether x can be normalised here: on the CPU, (..., C) with C > 0, float32 with a float32 weight
/// (C), or bfloat16 with a weight of either.
bool is_rms_norm_input(const at::Tensor& x, const at::Tensor& weight_C);

struct RmsNormResult {
  at::Tensor y;       ///< shape of x; float32, bfloat16 where x and weight are
  at::Tensor rstd_N;  ///< float32: 1 / sqrt(mean(x^2) + eps) of each row
};
/// cast(x rstd) weight, the cast to the dtype of x, all else in float32.
RmsNormResult rms_norm(const at::Tensor& x, const at::Tensor& weight_C, double eps,
                       CpuIsa isa = best_cpu_isa());

struct RmsNormGradients {
  at::Tensor x, weight_C;  ///< the dtypes of x and weight
};
/// dy: gradient to y, its dtype.
RmsNormGradients rms_norm_gradient(const at::Tensor& x, const at::Tensor& weight_C,
                                   const at::Tensor& rstd_N, const at::Tensor& dy,
                                   CpuIsa isa = best_cpu_isa());

}  // namespace vgen::kernels
