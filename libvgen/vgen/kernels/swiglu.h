#pragma once
// silu(a) b (arXiv:2002.05202) and its gradients in one pass each. No autograd here:
// nn/swiglu.h has it. All functions may be called from several threads.

#include <ATen/core/Tensor.h>

#include "vgen/kernels/cpu_isa.h"

namespace vgen::kernels {

/// Whether both are of one shape, dtype and device: float32 or bfloat16 on the CPU, any of
/// is_cuda_input() (detail/cuda_kernels.h) on CUDA.
bool is_swiglu_input(const at::Tensor& a, const at::Tensor& b);

/// Shape and dtype of a and b; in float32, rounded once.
at::Tensor swiglu(const at::Tensor& a, const at::Tensor& b, CpuIsa isa = best_cpu_isa());

struct SwigluGradients {
  at::Tensor a, b;
};
/// dy: gradient to the result, its dtype.
SwigluGradients swiglu_gradient(const at::Tensor& a, const at::Tensor& b, const at::Tensor& dy,
                                CpuIsa isa = best_cpu_isa());

}  // namespace vgen::kernels
