#pragma once
// What an adaptive layer norm does before and behind a branch of a transformer (arXiv:2212.09748;
// VAR's basic_var.py: AdaLNSelfAttn). B samples, L rows, C columns; all floating. Inputs of
// kernels/adaln.h take one pass each way, and there is no second derivative then.

#include <ATen/core/Tensor.h>

namespace vgen::nn {

/// norm(x) (1 + scale) + shift, the norm over C without weights of its own, in float32. In the
/// dtype that a matrix product of x takes: autocast's, else that of x.
at::Tensor modulated_norm(const at::Tensor& x_BLC, const at::Tensor& scale_B1C,
                          const at::Tensor& shift_B1C, double eps);

/// x + gate branch, in the dtype of x. In one pass the products are not
/// rounded before the sum.
at::Tensor gated_sum(const at::Tensor& x_BLC, const at::Tensor& branch_BLC,
                     const at::Tensor& gate_B1C);

}  // namespace vgen::nn
