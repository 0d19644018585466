#pragma once
// Queries and keys of unit length out of a joint projection (VAR's basic_var.py: SelfAttention with
// attn_l2_norm), and the gradients, in one pass each. H heads of D. No autograd here:
// nn/unit_heads.h has it. Results do not depend on the number of threads. All functions may be
// called from several threads.

#include <ATen/core/Tensor.h>

#include "vgen/kernels/cpu_isa.h"

namespace vgen::kernels {

/// Whether it is (B, L, 3, H, D) with something in it: float32 or bfloat16 on the CPU; any of
/// is_cuda_input() (detail/cuda_kernels.h) with D a power of two from 8 to 256 on CUDA.
bool is_unit_heads_input(const at::Tensor& qkv_BL3HD);

struct UnitHeadsResult {
  at::Tensor query_BLHD, key_BLHD, value_BLHD;  ///< contiguous, dtype of the projection
  at::Tensor rnorm_N2H;                         ///< float32: 1 / max(length, 1e-12)
};
/// q scale / |q|, k / |k|, v, in float32, rounded once. scale_H: float32.
UnitHeadsResult unit_heads(const at::Tensor& qkv_BL3HD, const at::Tensor& scale_H,
                           CpuIsa isa = best_cpu_isa());

struct UnitHeadsGradients {
  at::Tensor qkv_BL3HD;  ///< dtype of the projection
  at::Tensor scale_H;    ///< float32
};
/// d...: gradients to the results, in their dtype.
UnitHeadsGradients unit_heads_gradient(const at::Tensor& qkv_BL3HD, const at::Tensor& scale_H,
                                       const at::Tensor& rnorm_N2H, const at::Tensor& dquery_BLHD,
                                       const at::Tensor& dkey_BLHD, const at::Tensor& dvalue_BLHD,
                                       CpuIsa isa = best_cpu_isa());

}  // namespace vgen::kernels
