#pragma once
// Keys and values of the positions already decoded, per sequence slot and layer, and attention of
// one position over them.

#include <cstdint>
#include <vector>

#include "vgen/kernels/aligned_buffer.h"
#include "vgen/kernels/decode_kernels.h"

namespace vgen::kernels {

struct KvCacheShape {
  int64_t num_slots = 1;
  int64_t num_layers = 1;
  int64_t num_heads = 1;     ///< query heads
  int64_t num_kv_heads = 1;  ///< divides num_heads; consecutive query heads share one
  int64_t head_dim = 64;     ///< a multiple of 4
  int64_t max_length = 257;  ///< positions per slot
};

/// One row of a decoding step: which slot, at which position.
struct CacheRow {
  int64_t slot = 0;
  int64_t position = 0;
  int64_t first = 0;  ///< attends to first..position; to itself alone where position < first
};

/// Memory is reserved for all slots and taken as positions are written. A slot is reused by writing
/// it from position 0 again. Calls on one cache must not overlap.
class KvCache {
 public:
  /// storage: kFloat32 or kBFloat16.
  KvCache(const KvCacheShape& shape, Storage storage, CpuIsa isa);

  /// qkv: rows of [queries | keys | values] as the projection gives them. Rotates queries (in
  /// place, scaled by head_dim^-0.5) and keys by the row's position, and stores keys and values.
  /// rope_SP2: (cos, sin) of head_dim / 2 pairs per position. Several rows may be of one slot.
  /// Runs on LibTorch's threads.
  void append(float* qkv, const std::vector<CacheRow>& rows, int64_t layer, const float* rope_SP2);

  /// out: (rows, num_heads * head_dim), the heads' mixed values. Runs on LibTorch's threads.
  void attend(const float* qkv, const std::vector<CacheRow>& rows, int64_t layer, float* out);

  const KvCacheShape& shape() const { return shape_; }
  /// Bytes that attention reads for a slot of this length, all layers.
  int64_t bytes_read(int64_t length) const;

 private:
  std::byte* keys(int64_t slot, int64_t layer, int64_t head) const;
  std::byte* values(int64_t slot, int64_t layer, int64_t head) const;
  void append_head(float* qkv, const std::vector<CacheRow>& rows, int64_t layer, int64_t head,
                   const float* rope_SP2);
  void store_key(std::byte* keys, int64_t position, const float* key) const;
  void store_value(std::byte* values, int64_t position, const float* value) const;

  KvCacheShape shape_;
  Storage storage_;
  int64_t value_stride_ = 0;  // head_dim rounded up to 16
  int64_t length_ = 0;        // max_length rounded up to a block
  AlignedBuffer buffer_;
  std::vector<float> weights_;  // scratch of each thread
  int64_t weights_stride_ = 0;
  const DecodeKernels* kernels_;
};

}  // namespace vgen::kernels
