#pragma once
// Dropout (arXiv:1207.0580).

#include <ATen/core/Tensor.h>

namespace vgen::nn {

/// As torch::dropout; 0 <= p <= 1. On the CPU float32 and bfloat16 keep no mask
/// (kernels/dropout.h): one number is drawn from LibTorch's generator, and there is no second
/// derivative.
at::Tensor dropout(const at::Tensor& x, double p, bool is_training);

}  // namespace vgen::nn
