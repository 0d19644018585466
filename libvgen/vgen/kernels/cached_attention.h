#pragma once
// Attention of one new position of each sequence over a cache of keys and values, in one pass, on
// CUDA; the CPU's is in kv_cache.h. Runs on the current stream, without waiting for it, and may be
// recorded in a graph.
// R rows, one new position each; S slots of the cache, L positions of a slot, H heads of queries, K
// of keys and values, D head dim, P = D / 2 pairs, F = (H + 2 K) D.

#include <ATen/core/Tensor.h>

namespace vgen::kernels {

struct CachedAttention {
  at::Tensor qkv_RF;                       ///< contiguous: queries, keys, values; not turned
  at::Tensor rope_LP2;                     ///< float32: cosine, sine of each position
  at::Tensor slot_R, position_R, first_R;  ///< int64: where the row goes, where it begins
  at::Tensor key_SKLD, value_SKLD;         ///< the cache, of the dtype of qkv, contiguous
};

/// Whether there is a kernel for a cache (S, K, L, D): on CUDA, float32, bfloat16 or float16, D a
/// power of two from 8 to 256.
bool has_cached_attention(const at::Tensor& cache_SKLD);

/// Turns queries and keys by their position (nn/rotary.h), writes keys and values to the cache, and
/// attends to the positions from `first` to the row's own: (R, H D), of the dtype of qkv. A row at
/// position L - 1 is idle: it reads nothing, and its result is zero.
at::Tensor cached_attention(const CachedAttention& args);

}  // namespace vgen::kernels
