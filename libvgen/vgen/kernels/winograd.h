#pragma once
// 3x3 convolution, stride 1, padding 1, on the CPU with 4 times fewer multiplications (Winograd's
// F(4x4, 3x3), arXiv:1509.09308). B batch, I input and O output channels, H height, W width.
//
// Activations are float32 or bfloat16 and channels-last; weights and all arithmetic are float32, a
// result is rounded once. Differs from the direct sum by about 1e-6 of the size of the values.
// Results do not depend on the number of threads. All functions may be called from several threads.

#include <ATen/core/Tensor.h>

#include "vgen/kernels/cpu_isa.h"

namespace vgen::kernels {

/// Whether x can be convolved here: on the CPU, float32 or bfloat16, (B, C, H, W) channels-last.
bool is_winograd_input(const at::Tensor& x_BCHW);

struct WinogradOptions {
  bool is_upsampled = false;  ///< x is doubled in both directions first (nearest), without a copy
  bool is_flipped = false;    ///< the gradient to the input: the weight is (I, O, 3, 3), its kernel
                              ///< axes are reversed
  CpuIsa isa = best_cpu_isa();
};

/// conv(x) + bias + residual. weight_OI33 and bias_O: float32, the bias may be undefined; residual:
/// shape and dtype of the result, channels-last, may be undefined. Returns (B, O, H, W) in the
/// dtype of x, channels-last.
///
/// Weights are transformed at each call, and nothing of them is kept: transformed they are 4 times
/// as large, and reading that from memory takes as long as making it again.
at::Tensor winograd_conv(const at::Tensor& x_BIHW, const at::Tensor& weight_OI33,
                         const at::Tensor& bias_O, const at::Tensor& residual_BOHW,
                         const WinogradOptions& options = {});

/// Gradient to the weight, float32 (O, I, 3, 3). gradient_BOHW: to the result, channels-last, dtype
/// of x.
at::Tensor winograd_weight_gradient(const at::Tensor& x_BIHW, const at::Tensor& gradient_BOHW,
                                    const WinogradOptions& options = {});

}  // namespace vgen::kernels
