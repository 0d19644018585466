#pragma once
// Attention of one position; see decode_vectors.h.
#include "vgen/kernels/detail/decode_vectors.h"

namespace vgen::kernels {
namespace {

constexpr int kKeys = static_cast<int>(kKeyBlock);
constexpr int kKeyVectors = kKeys / kWidth;

// Scores of one block of keys: weights[r][0..16). Four sums, so that additions do not wait for
// each other. `values` are those of the same positions, which are asked for meanwhile.
template <Storage kStorage>
inline void score_block(const float* query, const std::byte* keys, const std::byte* values,
                        int64_t head_dim, float* out) {
  constexpr int64_t kLine = 64;
  Floats sum[4][kKeyVectors] = {};
  for (int64_t d = 0; d < head_dim; d += 4) {
    for (int64_t i = 0; i < weight_bytes<kStorage>(4 * kKeys); i += kLine) {
      __builtin_prefetch(values + weight_bytes<kStorage>(d * kKeys) + i);
    }
    for (int v = 0; v < kKeyVectors; ++v) {
      if constexpr (kStorage == Storage::kBFloat16) {
        const std::byte* at = keys + d * kKeys * 2 + v * kWidth * 4;
        const Words pairs = load<Words>(at), next = load<Words>(at + kKeys * 4);
        sum[0][v] += first_of_pairs(pairs) * query[d];
        sum[1][v] += second_of_pairs(pairs) * query[d + 1];
        sum[2][v] += first_of_pairs(next) * query[d + 2];
        sum[3][v] += second_of_pairs(next) * query[d + 3];
      } else {
        const std::byte* at = keys + (d * kKeys + v * kWidth) * 4;
        for (int i = 0; i < 4; ++i) {
          sum[i][v] += load<Floats>(at + i * kKeys * 4) * query[d + i];
        }
      }
    }
  }
  for (int v = 0; v < kKeyVectors; ++v) {
    store(out + v * kWidth, (sum[0][v] + sum[1][v]) + (sum[2][v] + sum[3][v]));
  }
}

// Scores to weights that sum to 1, zero outside [first, last]. Size: a multiple of 16.
inline void soften(float* weights, int64_t size, int64_t first, int64_t last) {
  for (int64_t t = 0; t < first; ++t) weights[t] = -1e30f;
  for (int64_t t = last + 1; t < size; ++t) weights[t] = -1e30f;
  float maximum = -1e30f;
  for (int64_t t = first; t <= last; ++t) maximum = weights[t] > maximum ? weights[t] : maximum;
  Floats sums{};
  for (int64_t t = 0; t < size; t += kWidth) {
    Floats weight = exponential(load<Floats>(weights + t) - maximum);
    store(weights + t, weight);
  }
  for (int64_t t = 0; t < first; ++t) weights[t] = 0;
  for (int64_t t = last + 1; t < size; ++t) weights[t] = 0;
  for (int64_t t = 0; t < size; t += kWidth) sums += load<Floats>(weights + t);
  float sum = 0;
  for (int i = 0; i < kWidth; ++i) sum += sums[i];
  const float scale = 1.0f / sum;
  for (int64_t t = 0; t < size; t += kWidth) store(weights + t, load<Floats>(weights + t) * scale);
}

// out[r][kChannels] = sum over t of weights[r][t] * values[t][kChannels].
template <Storage kStorage, int kQueries, int kChannels>
inline void mix_values(const AttendArgs& args, const float* weights, int64_t weight_stride,
                       int64_t channel, int64_t start, int64_t end, float* out) {
  constexpr int kVectors = kChannels / kWidth;
  Floats sum[kQueries][kVectors] = {};
  const int64_t stride = args.value_stride;
  for (int64_t t = start; t < end; t += kStorage == Storage::kBFloat16 ? 2 : 1) {
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (kStorage == Storage::kBFloat16) {
        const Words pairs =
            load<Words>(args.values + (t * stride + (channel + v * kWidth) * 2) * 2);
        for (int r = 0; r < kQueries; ++r) {
          sum[r][v] += first_of_pairs(pairs) * weights[r * weight_stride + t];
          sum[r][v] += second_of_pairs(pairs) * weights[r * weight_stride + t + 1];
        }
      } else {
        const Floats value = load<Floats>(args.values + (t * stride + channel + v * kWidth) * 4);
        for (int r = 0; r < kQueries; ++r) sum[r][v] += value * weights[r * weight_stride + t];
      }
    }
  }
  const int64_t left = args.head_dim - channel;
  const int64_t count = left < kChannels ? left : kChannels;
  for (int r = 0; r < kQueries; ++r) {
    float row[kChannels];
    for (int v = 0; v < kVectors; ++v) store(row + v * kWidth, sum[r][v]);
    for (int64_t i = 0; i < count; ++i) out[r * args.head_dim + channel + i] = row[i];
  }
}

// Heads that share values read them together, two at a time.
template <Storage kStorage, int kChannels>
inline void mix_heads(const AttendArgs& args, int64_t weight_stride, int64_t channel, int64_t end) {
  int64_t r = 0;
  for (; r + 2 <= args.num_queries; r += 2) {
    mix_values<kStorage, 2, kChannels>(args, args.weights + r * weight_stride, weight_stride,
                                       channel, 0, end, args.out + r * args.head_dim);
  }
  for (; r < args.num_queries; ++r) {
    mix_values<kStorage, 1, kChannels>(args, args.weights + r * weight_stride, weight_stride,
                                       channel, 0, end, args.out + r * args.head_dim);
  }
}

template <Storage kStorage>
void attend_storage(const AttendArgs& args) {
  // So many channels at a time that values are read in one go, as far as their sums fit.
  constexpr int kWideChannels = kWidth == 4 ? 16 : 32;
  const int64_t start = args.first / kKeys * kKeys;
  const int64_t size = (args.last / kKeys + 1) * kKeys - start;
  const int64_t block_bytes = weight_bytes<kStorage>(args.head_dim * kKeys);
  for (int64_t r = 0; r < args.num_queries; ++r) {
    float* weights = args.weights + r * size;
    for (int64_t t = 0; t < size; t += kKeys) {
      score_block<kStorage>(args.query + r * args.head_dim,
                            args.keys + (start + t) / kKeys * block_bytes,
                            args.values + weight_bytes<kStorage>((start + t) * args.value_stride),
                            args.head_dim, weights + t);
    }
    soften(weights, size, args.first - start, args.last - start);
  }
  const int64_t end = args.last - start + 1;
  AttendArgs shifted = args;
  shifted.values += weight_bytes<kStorage>(start * args.value_stride);
  int64_t channel = 0;
  for (; channel + kWideChannels <= args.value_stride; channel += kWideChannels) {
    mix_heads<kStorage, kWideChannels>(shifted, size, channel, end);
  }
  for (; channel < args.head_dim; channel += 16) {
    mix_heads<kStorage, 16>(shifted, size, channel, end);
  }
}

void attend(const AttendArgs& args) {
  if (args.storage == Storage::kBFloat16) {
    attend_storage<Storage::kBFloat16>(args);
  } else {
    attend_storage<Storage::kFloat32>(args);
  }
}

}  // namespace
}  // namespace vgen::kernels
