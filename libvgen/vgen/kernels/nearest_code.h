#pragma once
// Nearest codebook entry of each row. N rows, D channels, V codes.

#include <ATen/core/Tensor.h>

#include "vgen/kernels/cpu_isa.h"

namespace vgen::kernels {

/// argmin over j of |z_i|^2 + |e_j|^2 - 2 z_i.e_j, the first one where several are equal.
/// z_ND, codebook_VD: float32 on one device. Returns int64 (N). Not differentiable.
/// The N x V distances never exist at once: on the CPU they stay in registers, on CUDA they are
/// made and reduced in blocks. |z_i|^2 is the same for all j and is left out. Rows with a NaN get
/// code 0. Throws Error(kInvalidArgument) for other shapes and dtypes.
at::Tensor nearest_code(const at::Tensor& z_ND, const at::Tensor& codebook_VD,
                        CpuIsa isa = best_cpu_isa());

}  // namespace vgen::kernels
