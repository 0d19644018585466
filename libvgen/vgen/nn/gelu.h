#pragma once
// GELU by its tanh formula (arXiv:1606.08415), as VAR's feed-forward network has it.

#include <ATen/core/Tensor.h>

namespace vgen::nn {

/// Shape and dtype of x, floating. On the CPU float32 and bfloat16 are computed in float32 by one
/// pass each way, several times faster than tanh itself; there is no second derivative then.
at::Tensor gelu(const at::Tensor& x);

}  // namespace vgen::nn
