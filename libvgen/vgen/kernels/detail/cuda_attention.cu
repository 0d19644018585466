// Attention of one new position of each sequence over its cache, on CUDA devices. A block has a
// row and a head. Groups of threads take the cached positions in turns, eight channels a thread,
// each with a running softmax of its own (arXiv:1805.02867); at the end the groups are joined.
#include <cmath>

#include "vgen/kernels/detail/cuda_vectors.cuh"

namespace vgen::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxGroups = kThreads;  ///< heads of 8 channels
constexpr int kAhead = 4;             ///< positions of a group that are loaded at once

/// A weighted sum of values, weights exp(score - maximum).
struct Mix {
  float maximum = -INFINITY, weight = 0;
  Vector sum = {};

  __device__ void add(float score, const Vector& value) {
    const float next = fmaxf(maximum, score);
    const float old_share = __expf(maximum - next), share = __expf(score - next);
    maximum = next;
    weight = weight * old_share + share;
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum[i] = sum[i] * old_share + share * value[i];
  }
};

__global__ void __launch_bounds__(kThreads)
    cached_attention_kernel(const CudaCachedAttention args) {
  __shared__ float maxima[kMaxGroups], weights[kMaxGroups], sums[kThreads * kVector];
  const int head_dim = static_cast<int>(args.head_dim), size = head_dim / kVector;
  const int groups = kThreads / size, group = static_cast<int>(threadIdx.x) / size;
  const int channel = static_cast<int>(threadIdx.x) % size * kVector;
  const int64_t row = blockIdx.x, head = blockIdx.y, per_key = args.heads / args.kv_heads;
  const int64_t kv_head = head / per_key, width = args.heads * head_dim;
  const int64_t position = args.position[row], slot = args.slot[row];
  const Numbers qkv{const_cast<void*>(args.qkv), args.type};
  const Numbers keys{args.key, args.type}, values{args.value, args.type};
  const Numbers out{args.out, args.type};

  const int64_t from = row * (args.heads + 2 * args.kv_heads) * head_dim + channel;
  Vector rope, query, key, value;
  load({const_cast<float*>(args.rope)}, position * head_dim + channel, rope);
  load(qkv, from + head * head_dim, query);
  load(qkv, from + (args.heads + kv_head) * head_dim, key);
  load(qkv, from + (args.heads + args.kv_heads + kv_head) * head_dim, value);
  turn(query, rope);
  turn(key, rope);
  const float scale = rsqrtf(static_cast<float>(head_dim));
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    query[i] = rounded(query[i], args.type) * scale;
    key[i] = rounded(key[i], args.type);
  }
  const int64_t cached = (slot * args.kv_heads + kv_head) * args.length * head_dim + channel;
  if (group == 0 && head % per_key == 0) {
    store(key, keys, cached + position * head_dim);
    store(value, values, cached + position * head_dim);
  }
  if (position == args.length - 1) {
    if (group == 0) store(Vector{}, out, row * width + head * head_dim + channel);
    return;
  }

  const auto score_of = [&](const Vector& other) { return head_sum(dot(query, other), size); };
  Mix mix;
  const float own = score_of(key);
  if (group == 0) mix.add(own, value);
  // All threads of a warp take as many turns: what lies behind the end is read twice, not counted.
  for (int64_t begin = args.first[row]; begin < position; begin += groups * kAhead) {
    Vector key_of[kAhead], value_of[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t p = min(begin + i * groups + group, position - 1);
      load(keys, cached + p * head_dim, key_of[i]);
      load(values, cached + p * head_dim, value_of[i]);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const float score = score_of(key_of[i]);
      if (begin + i * groups + group < position) mix.add(score, value_of[i]);
    }
  }

  if (channel == 0) {
    maxima[group] = mix.maximum;
    weights[group] = mix.weight;
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) sums[group * head_dim + channel + i] = mix.sum[i];
  __syncthreads();
  if (group != 0) return;
  float maximum = -INFINITY, weight = 0;
  for (int g = 0; g < groups; ++g) maximum = fmaxf(maximum, maxima[g]);
  Vector sum = {};
  for (int g = 0; g < groups; ++g) {
    const float share = __expf(maxima[g] - maximum);  // 0 of a group that had no position
    weight += share * weights[g];
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum[i] += share * sums[g * head_dim + channel + i];
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) sum[i] /= weight;
  store(sum, out, row * width + head * head_dim + channel);
}

}  // namespace

void launch(const CudaCachedAttention& args, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>(args.rows), static_cast<unsigned>(args.heads));
  cached_attention_kernel<<<blocks, kThreads, 0, stream>>>(args);
}

}  // namespace vgen::kernels
