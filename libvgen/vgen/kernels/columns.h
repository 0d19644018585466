#pragma once
// Sums of the columns of a matrix, on CUDA, where LibTorch's own take several times as long as
// reading it.

#include <ATen/core/Tensor.h>

namespace vgen::kernels {

/// Whether x is (M, N), contiguous, and one of is_cuda_input() (detail/cuda_kernels.h) of any N.
bool is_column_sums_input(const at::Tensor& x_MN);

/// float32 (N), in an order that does not change. Runs on the current stream.
at::Tensor column_sums(const at::Tensor& x_MN);

}  // namespace vgen::kernels
