#pragma once
// GELU by its tanh formula (arXiv:1606.08415) and its gradient, on the CPU. No autograd here:
// nn/gelu.h has it. Both functions may be called from several threads.

#include <ATen/core/Tensor.h>

#include "vgen/kernels/cpu_isa.h"

namespace vgen::kernels {

/// Whether x is on the CPU, float32 or bfloat16.
bool is_gelu_input(const at::Tensor& x);

/// Shape and dtype of x; in float32, rounded once.
at::Tensor gelu(const at::Tensor& x, CpuIsa isa = best_cpu_isa());

/// To x; dy: gradient to the result, its dtype.
at::Tensor gelu_gradient(const at::Tensor& x, const at::Tensor& dy, CpuIsa isa = best_cpu_isa());

}  // namespace vgen::kernels
