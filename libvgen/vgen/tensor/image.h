#pragma once
// Image tensors: float in [-1, 1] as models use them, bytes as files hold them.
// B batch, H height, W width, R rows, C columns of a grid.

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace vgen {

/// The official scripts' pixel rule: trunc(clamp(127.5 x + 128, 0, 255)); -1 gives 0, +1 gives 255.
/// image_B3HW: floating, any memory format. Returns uint8 (B, H, W, 3), contiguous, on the CPU.
at::Tensor to_uint8(const at::Tensor& image_B3HW);

/// uint8 (B, H, W, 3) images side by side, row by row, `num_columns` to a row, `padding` white
/// pixels between. Returns uint8 (H', W', 3). The last row is filled with white.
at::Tensor image_grid(const at::Tensor& image_BHW3, int64_t num_columns, int64_t padding = 2);

/// Peak signal-to-noise ratio of each image, in dB: 10 log10(1 / MSE) between recon_B3HW rounded to
/// 8 bits by to_uint8 and image_B3HW as it is, both in [0, 1]. That is how the official evaluation
/// compares. Both float (B, 3, H, W) in [-1, 1], any device. Returns float64 (B) on the CPU.
at::Tensor psnr_B(const at::Tensor& image_B3HW, const at::Tensor& recon_B3HW);

}  // namespace vgen
