#pragma once
// Rotary positions of a square grid of image tokens (arXiv:2104.09864; LlamaGen's gpt.py:
// precompute_freqs_cis_2d, apply_rotary_emb).
// B batch, S positions, T condition tokens, H heads (K of keys and values), D head dim, P = D / 2
// pairs.

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace vgen::nn {

/// (cos, sin) of every position of T condition tokens followed by grid_size^2 image tokens in
/// raster order: (T + grid_size^2, P, 2), float32. The first half of the pairs turns with the row,
/// the second with the column, pair j of a half by base^(-2 j / P) per step.
/// quirk: the rows of condition tokens are zero, cosine too: their queries and keys vanish.
/// Throws Error(kInvalidArgument) unless head_dim is a multiple of 4.
at::Tensor rotary_table_2d(int64_t grid_size, int64_t head_dim, double base,
                           int64_t num_condition_tokens);

/// Turns the channel pairs (2p, 2p + 1) of x_BSHD by rope_SP2, in float32. Returns the dtype of x.
at::Tensor apply_rotary(const at::Tensor& x_BSHD, const at::Tensor& rope_SP2);

struct AttentionHeads {
  at::Tensor query_BHSD, key_BKSD, value_BKSD;
};
/// The heads of a fused product: H of queries, K of keys, K of values, each of D channels,
/// F = (H + 2 K) D. Queries and keys are turned as by apply_rotary. The dtype is that of qkv_BSF,
/// the layout that of (B, S, heads, D), which attention keeps in its result. Inputs of
/// kernels/rotary.h take one pass, also backward, and there is no second derivative then.
AttentionHeads rotary_heads(const at::Tensor& qkv_BSF, const at::Tensor& rope_SP2, int64_t n_head,
                            int64_t n_kv_head);

}  // namespace vgen::nn
