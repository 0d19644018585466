#pragma once
// What an adaptive layer norm does before and behind a branch of a transformer (arXiv:2212.09748;
// VAR's basic_var.py: AdaLNSelfAttn), and the gradients, in one pass each. B samples of L rows, C
// columns; scales, shifts and gates are (B, C), contiguous float32 on the CPU, of any strides and
// of any dtype of is_cuda_input() (detail/cuda_kernels.h) on CUDA. No autograd here: nn/adaln.h has
// it. Results do not depend on the number of threads. All functions may be called from several
// threads.

#include <ATen/core/Tensor.h>

#include "vgen/kernels/cpu_isa.h"

namespace vgen::kernels {

/// Whether x is (B, L, C) with something in it, float32 or bfloat16 on the CPU, any of
/// is_cuda_input() on CUDA.
bool is_adaln_input(const at::Tensor& x_BLC);

struct ModulatedNormResult {
  at::Tensor y_BLC;
  at::Tensor mean_N, rstd_N;  ///< float32, of each of the B L rows
};
/// norm(x) (1 + scale) + shift, the norm without weights of its own. In float32, rounded once to
/// `dtype`, one that x can have.
ModulatedNormResult modulated_norm(const at::Tensor& x_BLC, const at::Tensor& scale_BC,
                                   const at::Tensor& shift_BC, double eps, at::ScalarType dtype,
                                   CpuIsa isa = best_cpu_isa());

struct ModulatedNormGradients {
  at::Tensor x_BLC;               ///< dtype of x
  at::Tensor scale_BC, shift_BC;  ///< float32
};
/// dy: gradient to y, its dtype.
ModulatedNormGradients modulated_norm_gradient(const at::Tensor& x_BLC, const at::Tensor& scale_BC,
                                               const at::Tensor& mean_N, const at::Tensor& rstd_N,
                                               const at::Tensor& dy_BLC,
                                               CpuIsa isa = best_cpu_isa());

/// x + gate branch, in float32, rounded once to the dtype of x.
at::Tensor gated_sum(const at::Tensor& x_BLC, const at::Tensor& branch_BLC,
                     const at::Tensor& gate_BC, CpuIsa isa = best_cpu_isa());

struct GatedSumGradients {
  at::Tensor branch_BLC;  ///< dtype of the branch
  at::Tensor gate_BC;     ///< float32
};
/// dy: gradient to the sum, of its dtype; it is that to x too.
GatedSumGradients gated_sum_gradient(const at::Tensor& branch_BLC, const at::Tensor& gate_BC,
                                     const at::Tensor& dy_BLC, CpuIsa isa = best_cpu_isa());

}  // namespace vgen::kernels
