#include "vgen/kernels/kv_cache.h"

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cmath>

#include "vgen/core/error.h"

namespace vgen::kernels {

namespace {
constexpr int64_t kValueLanes = 16;
}

KvCache::KvCache(const KvCacheShape& shape, Storage storage, CpuIsa isa)
    : shape_(shape), storage_(storage), kernels_(&decode_kernels(isa)) {
  require(storage != Storage::kInt8 && shape.head_dim % 4 == 0 &&
              shape.num_heads % shape.num_kv_heads == 0,
          ErrorCode::kInvalidArgument, "key-value cache: head_dim ", shape.head_dim,
          " must be a multiple of 4, and ", shape.num_kv_heads, " key heads divide ",
          shape.num_heads, " query heads");
  value_stride_ = (shape.head_dim + kValueLanes - 1) / kValueLanes * kValueLanes;
  length_ = (shape.max_length + kKeyBlock - 1) / kKeyBlock * kKeyBlock;
  const int64_t item = storage == Storage::kFloat32 ? 4 : 2;
  buffer_ =
      AlignedBuffer(static_cast<size_t>(shape.num_slots * shape.num_layers * shape.num_kv_heads *
                                        length_ * (shape.head_dim + value_stride_) * item));
  weights_stride_ = shape.num_heads / shape.num_kv_heads * (length_ + kKeyBlock);
}

int64_t KvCache::bytes_read(int64_t length) const {
  const int64_t item = storage_ == Storage::kFloat32 ? 4 : 2;
  return shape_.num_layers * shape_.num_kv_heads * length * 2 * shape_.head_dim * item;
}

// A head of a layer of a slot: its keys, then its values.
std::byte* KvCache::keys(int64_t slot, int64_t layer, int64_t head) const {
  const int64_t item = storage_ == Storage::kFloat32 ? 4 : 2;
  const int64_t index = (slot * shape_.num_layers + layer) * shape_.num_kv_heads + head;
  return buffer_.data() + index * length_ * (shape_.head_dim + value_stride_) * item;
}

std::byte* KvCache::values(int64_t slot, int64_t layer, int64_t head) const {
  const int64_t item = storage_ == Storage::kFloat32 ? 4 : 2;
  return keys(slot, layer, head) + length_ * shape_.head_dim * item;
}

void KvCache::store_key(std::byte* keys, int64_t position, const float* key) const {
  const int64_t block = position / kKeyBlock, lane = position % kKeyBlock;
  const int64_t start = block * kKeyBlock * shape_.head_dim;
  if (storage_ == Storage::kFloat32) {
    float* to = reinterpret_cast<float*>(keys) + start + lane;
    for (int64_t d = 0; d < shape_.head_dim; ++d) to[d * kKeyBlock] = key[d];
    return;
  }
  auto* to = reinterpret_cast<at::BFloat16*>(keys) + start + lane * 2;
  for (int64_t d = 0; d < shape_.head_dim; d += 2) {
    to[d * kKeyBlock] = at::BFloat16(key[d]);
    to[d * kKeyBlock + 1] = at::BFloat16(key[d + 1]);
  }
}

void KvCache::store_value(std::byte* values, int64_t position, const float* value) const {
  if (storage_ == Storage::kFloat32) {
    std::copy_n(value, shape_.head_dim,
                reinterpret_cast<float*>(values) + position * value_stride_);
    return;
  }
  auto* to = reinterpret_cast<at::BFloat16*>(values) + position / 2 * 2 * value_stride_;
  for (int64_t d = 0; d < shape_.head_dim; ++d) {
    to[d * 2 + position % 2] = at::BFloat16(value[d]);
    // The partner is read with weight zero until it is written: it must not be an old NaN.
    if (position % 2 == 0) to[d * 2 + 1] = at::BFloat16(0.0f);
  }
}

// A key-value head of all rows, and the query heads that share it, in the order of the rows.
void KvCache::append_head(float* qkv, const std::vector<CacheRow>& rows, int64_t layer,
                          int64_t head, const float* rope_SP2) {
  const int64_t head_dim = shape_.head_dim, group = shape_.num_heads / shape_.num_kv_heads;
  const float query_scale = 1 / std::sqrt(static_cast<float>(head_dim));
  for (const CacheRow& row : rows) {
    const float* rope_P2 = rope_SP2 + row.position * head_dim;
    const auto turn = [&](float* x, float scale) {
      for (int64_t p = 0; p < head_dim / 2; ++p) {
        const float a = x[2 * p], b = x[2 * p + 1], cos = rope_P2[2 * p], sin = rope_P2[2 * p + 1];
        x[2 * p] = (a * cos - b * sin) * scale;
        x[2 * p + 1] = (b * cos + a * sin) * scale;
      }
    };
    for (int64_t i = 0; i < group; ++i) turn(qkv + (head * group + i) * head_dim, query_scale);
    float* key = qkv + (shape_.num_heads + head) * head_dim;
    turn(key, 1);
    store_key(keys(row.slot, layer, head), row.position, key);
    store_value(values(row.slot, layer, head), row.position, key + shape_.num_kv_heads * head_dim);
    qkv += (shape_.num_heads + 2 * shape_.num_kv_heads) * head_dim;
  }
}

// Rows of one slot write neighbouring bytes, never the same: a partner that is cleared belongs to
// the next position, so the rows of a head are written in order by one thread.
void KvCache::append(float* qkv, const std::vector<CacheRow>& rows, int64_t layer,
                     const float* rope_SP2) {
  at::parallel_for(0, shape_.num_kv_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) append_head(qkv, rows, layer, head, rope_SP2);
  });
}

void KvCache::attend(const float* qkv, const std::vector<CacheRow>& rows, int64_t layer,
                     float* out) {
  const int64_t group = shape_.num_heads / shape_.num_kv_heads, head_dim = shape_.head_dim;
  const int64_t width = (shape_.num_heads + 2 * shape_.num_kv_heads) * head_dim;
  const size_t scratch = static_cast<size_t>(at::get_num_threads() * weights_stride_);
  if (weights_.size() < scratch) weights_.resize(scratch);
  const auto num_jobs = static_cast<int64_t>(rows.size()) * shape_.num_kv_heads;
  at::parallel_for(0, num_jobs, 1, [&](int64_t begin, int64_t end) {
    AttendArgs args;
    args.num_queries = group;
    args.head_dim = head_dim;
    args.value_stride = value_stride_;
    args.weights = weights_.data() + at::get_thread_num() * weights_stride_;
    args.storage = storage_;
    for (int64_t job = begin; job < end; ++job) {
      const int64_t i = job / shape_.num_kv_heads, head = job % shape_.num_kv_heads;
      const CacheRow& row = rows[i];
      args.query = qkv + i * width + head * group * head_dim;
      args.keys = keys(row.slot, layer, head);
      args.values = values(row.slot, layer, head);
      args.first = std::min(row.first, row.position);
      args.last = row.position;
      args.out = out + (i * shape_.num_heads + head * group) * head_dim;
      kernels_->attend(args);
    }
  });
}

}  // namespace vgen::kernels
