#pragma once
// Nearest codebook entry of each row. N rows, D channels, V codes.

#include <ATen/core/Tensor.h>

namespace vgen::kernels {

/// argmin over j of |z_i|^2 + |e_j|^2 - 2 z_i.e_j, the first one where several are equal.
/// z_ND, codebook_VD: float32 on one device. Returns int64 (N). Not differentiable.
/// The N x V distances never exist at once: they are made and reduced in blocks.
/// Rows with a NaN get code 0. Throws Error(kInvalidArgument) for other shapes and dtypes.
at::Tensor nearest_code(const at::Tensor& z_ND, const at::Tensor& codebook_VD);

}  // namespace vgen::kernels
