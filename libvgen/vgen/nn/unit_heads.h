#pragma once
// Queries and keys of unit length out of a joint projection (VAR's basic_var.py: SelfAttention with
// attn_l2_norm).

#include <ATen/core/Tensor.h>

namespace vgen::nn {

struct Heads {
  at::Tensor query_BLHD, key_BLHD, value_BLHD;
};
/// q scale / |q|, k / |k| and v, in the dtype of the projection (B, L, 3, H, D), computed in
/// float32; scale_H: float32, of each head. Inputs of kernels/unit_heads.h take one pass each
/// way, and there is no second derivative then.
Heads unit_heads(const at::Tensor& qkv_BL3HD, const at::Tensor& scale_H);

}  // namespace vgen::nn
