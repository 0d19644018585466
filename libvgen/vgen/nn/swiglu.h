#pragma once
// The gate of a SwiGLU feed-forward network (arXiv:2002.05202).

#include <ATen/core/Tensor.h>

namespace vgen::nn {

/// silu(a) b. Floating, of one shape and dtype, which are the result's. Inputs of
/// kernels/swiglu.h are computed in one pass, in float32, and only a and b are kept for the
/// backward pass; there is no second derivative then.
at::Tensor swiglu(const at::Tensor& a, const at::Tensor& b);

}  // namespace vgen::nn
