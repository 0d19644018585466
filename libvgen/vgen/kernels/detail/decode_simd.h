#pragma once
// The decoding kernels for vectors of kWidth floats. The including source defines before: kWidth,
// Ints (kWidth int32) and widen_int8, which loads kWidth bytes as Ints.
//
// Included once by each decode_<isa>.cpp, which is compiled with flags of its own. All names are in
// an anonymous namespace and nothing of the standard library is called: an inline function compiled
// with AVX-512 here must never be the copy that the linker keeps for the rest of the program.
// Vectors are those of GCC and Clang, so the three levels share one text and one test.

#include <cstddef>
#include <cstdint>

#include "vgen/kernels/decode_kernels.h"

namespace vgen::kernels {
namespace {

using Floats [[gnu::vector_size(kWidth * 4)]] = float;
using Words [[gnu::vector_size(kWidth * 4)]] = uint32_t;

template <class Vector>
inline Vector load(const void* from) {
  Vector value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}
inline void store(float* to, Floats value) { __builtin_memcpy(to, &value, sizeof(value)); }
// Subtracting zero changes nothing, and the compiler knows it; adding it would turn -0 into 0.
inline Floats broadcast(float value) { return value - Floats{}; }
inline Floats as_floats(Words bits) { return __builtin_bit_cast(Floats, bits); }
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// A vector of bfloat16 pairs, the first of each pair in the low half.
inline Floats first_of_pairs(Words pairs) { return as_floats(pairs << 16); }
inline Floats second_of_pairs(Words pairs) { return as_floats(pairs & 0xffff0000u); }
inline Floats load_int8(const std::byte* from) {
  return __builtin_convertvector(widen_int8(from), Floats);
}

// e^x, relative error below 2e-7 on [-87, 88]; outside x is clamped (Cephes' expf).
inline Floats exponential(Floats x) {
  x = larger(x, broadcast(-87.0f));
  x = x < broadcast(88.0f) ? x : broadcast(88.0f);
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the low bits
  const Floats shifted = x * 1.44269504f + kRound;
  const Floats n = shifted - kRound;
  const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Ints exponent = __builtin_convertvector(n, Ints) + 127;
  const Words bits = __builtin_bit_cast(Words, exponent) << 23;
  return p * as_floats(bits);
}

// ---- y = x W^T ------------------------------------------------------------------------------

constexpr int kBlock = static_cast<int>(kLinearBlock);
// Rows and vectors whose sums fit the registers: many vectors for few rows, so that each weight is
// loaded and converted once; fewer vectors for more rows, so that each is used more often.
constexpr int kWideVectors = kWidth == 16 ? 2 : 4;
constexpr int kWideRows = kWidth == 16 ? 10 : kWidth == 8 ? 3 : 2;
constexpr int kNarrowVectors = 2;
constexpr int kNarrowRows = kWidth == 16 ? 10 : kWidth == 8 ? 6 : 4;
constexpr int kMaxRows = 64;               // per pass over the weights
constexpr int64_t kChunkBytes = 16 << 10;  // of a block: stays in the first-level cache

template <Storage kStorage>
constexpr int64_t weight_bytes(int64_t count) {
  return count * (kStorage == Storage::kFloat32 ? 4 : kStorage == Storage::kBFloat16 ? 2 : 1);
}

// The chunk that comes next is asked from memory while this one is multiplied, evenly: `stride`
// bytes further with every input. The hardware's own prefetcher stops at page boundaries.
struct Ahead {
  const std::byte* from;
  int64_t stride;

  /// Of `parts` passes over a chunk of `size` inputs, what pass `part` asks for.
  Ahead share(int64_t part, int64_t parts, int64_t size) const {
    const int64_t step = (stride + parts - 1) / parts;
    return {from + part * step * size, step};
  }
};

// Adds the products of `size` inputs to `sum`. weight: the first of the vectors' columns.
template <Storage kStorage, int kRows, int kVectors>
inline __attribute__((always_inline)) void multiply(const std::byte* weight, const Ahead& ahead,
                                                    const float* x, int64_t x_stride, int64_t size,
                                                    Floats (&sum)[kRows][kVectors]) {
  constexpr int64_t kStep = kStorage == Storage::kBFloat16 ? 2 : 1;
  for (int64_t k = 0; k < size; k += kStep) {
    const std::byte* row = weight + weight_bytes<kStorage>(k * kBlock);
    __builtin_prefetch(ahead.from + k * ahead.stride);
    if constexpr (kStorage == Storage::kBFloat16) {
      // One after the other: both together, beside the sums, are more than there are registers.
      Floats column[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        column[v] = first_of_pairs(load<Words>(row + v * kWidth * 4));
      }
      for (int r = 0; r < kRows; ++r) {
        const Floats x0 = broadcast(x[r * x_stride + k]);
        for (int v = 0; v < kVectors; ++v) sum[r][v] += column[v] * x0;
      }
      for (int v = 0; v < kVectors; ++v) {
        column[v] = second_of_pairs(load<Words>(row + v * kWidth * 4));
      }
      for (int r = 0; r < kRows; ++r) {
        const Floats x1 = broadcast(x[r * x_stride + k + 1]);
        for (int v = 0; v < kVectors; ++v) sum[r][v] += column[v] * x1;
      }
    } else {
      Floats column[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        column[v] = kStorage == Storage::kInt8 ? load_int8(row + v * kWidth)
                                               : load<Floats>(row + v * kWidth * 4);
      }
      for (int r = 0; r < kRows; ++r) {
        const Floats x0 = broadcast(x[r * x_stride + k]);
        for (int v = 0; v < kVectors; ++v) sum[r][v] += column[v] * x0;
      }
    }
  }
}

// The 32 outputs of a block for kRows rows, kVectors vectors at a time, added to tile (rows, 32).
template <Storage kStorage, int kRows, int kVectors>
void multiply_rows(const std::byte* weight, const Ahead& ahead, const float* x, int64_t x_stride,
                   int64_t size, float* tile) {
  constexpr int kColumns = kVectors * kWidth;
  for (int column = 0; column < kBlock; column += kColumns) {
    Floats sum[kRows][kVectors];
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        sum[r][v] = load<Floats>(tile + r * kBlock + column + v * kWidth);
      }
    }
    // Pairs of bfloat16: a column of the block is four bytes wide there too.
    const int64_t column_bytes = kStorage == Storage::kInt8 ? column : column * 4;
    multiply<kStorage, kRows, kVectors>(weight + column_bytes,
                                        ahead.share(column / kColumns, kBlock / kColumns, size), x,
                                        x_stride, size, sum);
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        store(tile + r * kBlock + column + v * kWidth, sum[r][v]);
      }
    }
  }
}

template <Storage kStorage, int kRows>
inline void multiply_some(int64_t num_rows, const std::byte* weight, const Ahead& ahead,
                          const float* x, int64_t x_stride, int64_t size, float* tile) {
  if (num_rows == kRows) {
    constexpr int kVectors = kRows <= kWideRows ? kWideVectors : kNarrowVectors;
    multiply_rows<kStorage, kRows, kVectors>(weight, ahead, x, x_stride, size, tile);
  } else if constexpr (kRows > 1) {
    multiply_some<kStorage, kRows - 1>(num_rows, weight, ahead, x, x_stride, size, tile);
  }
}

inline void finish_swiglu(const LinearArgs& args, int64_t block, int64_t row, const float* tile) {
  constexpr int kHalf = kBlock / 2;
  float* y = args.y + row * args.num_outputs + block * kHalf;
  float out[kHalf];
  for (int i = 0; i < kHalf; i += kWidth) {
    const Floats gate = load<Floats>(tile + i), up = load<Floats>(tile + kHalf + i);
    store(out + i, gate / (exponential(-gate) + 1.0f) * up);
  }
  const int64_t count = args.num_outputs - block * kHalf;
  for (int i = 0; i < (count < kHalf ? count : kHalf); ++i) y[i] = out[i];
}

// x / (1 + e^-2u) with u = sqrt(2 / pi) (x + 0.044715 x^3) is 0.5 x (1 + tanh(u)).
inline Floats gelu(Floats x) {
  const Floats u = x * (x * x * 0.044715f + 1.0f) * 0.797884561f;
  return x / (exponential(u * -2.0f) + 1.0f);
}

// Of one row of the block: y (count) from its sums.
inline void finish_row(const LinearArgs& args, int64_t block, int64_t index, float* row) {
  float* y = args.y + index * args.num_outputs + block * kBlock;
  const int64_t left = args.num_outputs - block * kBlock;
  const int count = left < kBlock ? static_cast<int>(left) : kBlock;
  switch (args.epilogue) {
    case Epilogue::kAdd:
      for (int i = 0; i < count; ++i) y[i] += row[i];
      return;
    case Epilogue::kAddGated: {
      const float* gate =
          args.gate.values + index / args.gate.rows * args.gate.stride + block * kBlock;
      for (int i = 0; i < count; ++i) y[i] += gate[i] * row[i];
      return;
    }
    case Epilogue::kGelu:
      for (int i = 0; i < kBlock; i += kWidth) store(row + i, gelu(load<Floats>(row + i)));
      [[fallthrough]];
    default:
      for (int i = 0; i < count; ++i) y[i] = row[i];
  }
}

inline void finish_block(const LinearArgs& args, int64_t block, int64_t first_row, int64_t num_rows,
                         float* tile) {
  for (int64_t r = 0; r < num_rows; ++r) {
    float* row = tile + r * kBlock;
    if (args.scale != nullptr) {
      for (int i = 0; i < kBlock; ++i) row[i] *= args.scale[block * kBlock + i];
    }
    if (args.bias != nullptr) {
      for (int i = 0; i < kBlock; ++i) row[i] += args.bias[block * kBlock + i];
    }
    if (args.epilogue == Epilogue::kSwiGlu) {
      finish_swiglu(args, block, first_row + r, row);
    } else {
      finish_row(args, block, first_row + r, row);
    }
  }
}

// Pairs of bfloat16 as floats, one row of the block after the other.
inline void widen_pairs(const std::byte* from, int64_t size, float* to) {
  for (int64_t k = 0; k < size; k += 2) {
    for (int n = 0; n < kBlock; n += kWidth) {
      const Words pairs = load<Words>(from + (k * kBlock + n * 2) * 2);
      store(to + k * kBlock + n, first_of_pairs(pairs));
      store(to + (k + 1) * kBlock + n, second_of_pairs(pairs));
    }
  }
}

// The products of one chunk of a block with all rows, added to tile.
template <Storage kStorage>
inline void multiply_chunk(const std::byte* weight, const Ahead& ahead, const float* x,
                           int64_t x_stride, int64_t size, int64_t num_rows, float* tile) {
  const int64_t num_groups = (num_rows + kNarrowRows - 1) / kNarrowRows;
  int64_t row = 0;
  for (int64_t group = 0; group < num_groups; ++group) {
    const int64_t count = (num_rows - row) / (num_groups - group);
    multiply_some<kStorage, kNarrowRows>(count, weight, ahead.share(group, num_groups, size),
                                         x + row * x_stride, x_stride, size, tile + row * kBlock);
    row += count;
  }
}

template <Storage kStorage>
void linear_pass(const LinearArgs& args, int64_t first_block, int64_t last_block, int64_t first_row,
                 int64_t num_rows) {
  // With many groups of rows it pays to widen bfloat16 once for all of them, and not in registers
  // for each. The sums are the same.
  constexpr int64_t kFewGroups = 3;
  constexpr int64_t kWideSize = kInputChunk;
  const bool is_widened =
      kStorage == Storage::kBFloat16 && args.has_chunks && num_rows > kFewGroups * kNarrowRows;
  constexpr int64_t kStride = weight_bytes<kStorage>(kBlock);
  const int64_t chunk = args.has_chunks ? kInputChunk : kChunkBytes / kStride;
  const int64_t x_stride = args.has_chunks ? kInputChunk : args.in_features;
  alignas(64) float tile[kMaxRows * kBlock];
  alignas(64) float wide[kStorage == Storage::kBFloat16 ? kWideSize * kBlock : 1];
  for (int64_t block = first_block; block < last_block; ++block) {
    const std::byte* weight =
        args.weight + weight_bytes<kStorage>(block * kBlock * args.in_features);
    __builtin_memset(tile, 0, static_cast<size_t>(num_rows * kBlock) * sizeof(float));
    for (int64_t k = 0; k < args.in_features; k += chunk) {
      const int64_t size = args.in_features - k < chunk ? args.in_features - k : chunk;
      const std::byte* part = weight + weight_bytes<kStorage>(k * kBlock);
      const float* x = args.has_chunks ? args.x + k * args.num_rows + first_row * kInputChunk
                                       : args.x + first_row * args.in_features + k;
      const Ahead ahead{part + size * kStride, kStride};
      if (is_widened) {
        widen_pairs(part, size, wide);
        multiply_chunk<Storage::kFloat32>(reinterpret_cast<const std::byte*>(wide), ahead, x,
                                          x_stride, size, num_rows, tile);
      } else {
        multiply_chunk<kStorage>(part, ahead, x, x_stride, size, num_rows, tile);
      }
    }
    finish_block(args, block, first_row, num_rows, tile);
  }
}

void linear(const LinearArgs& args, int64_t first_block, int64_t last_block) {
  for (int64_t row = 0; row < args.num_rows; row += kMaxRows) {
    const int64_t left = args.num_rows - row;
    const int64_t count = left < kMaxRows ? left : kMaxRows;
    switch (args.storage) {
      case Storage::kFloat32:
        linear_pass<Storage::kFloat32>(args, first_block, last_block, row, count);
        break;
      case Storage::kBFloat16:
        linear_pass<Storage::kBFloat16>(args, first_block, last_block, row, count);
        break;
      case Storage::kInt8:
        linear_pass<Storage::kInt8>(args, first_block, last_block, row, count);
        break;
    }
  }
}

// ---- attention ------------------------------------------------------------------------------

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

// ---- rows -----------------------------------------------------------------------------------

void rms_norm(const float* x, const float* weight, float* out, int64_t size, float epsilon) {
  const int64_t whole = size / kWidth * kWidth;
  Floats sums{};
  for (int64_t i = 0; i < whole; i += kWidth) {
    const Floats value = load<Floats>(x + i);
    sums += value * value;
  }
  float sum = 0;
  for (int i = 0; i < kWidth; ++i) sum += sums[i];
  for (int64_t i = whole; i < size; ++i) sum += x[i] * x[i];
  const float scale = 1.0f / __builtin_sqrtf(sum / static_cast<float>(size) + epsilon);
  for (int64_t i = 0; i < whole; i += kWidth) {
    store(out + i, load<Floats>(x + i) * scale * load<Floats>(weight + i));
  }
  for (int64_t i = whole; i < size; ++i) out[i] = x[i] * scale * weight[i];
}

// Four sums, so that additions do not wait for each other. size: a multiple of kWidth, or the rest
// is left out.
template <class Term>
inline float sum_of(int64_t size, const Term& term) {
  Floats sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kWidth <= size; i += 4 * kWidth) {
    for (int u = 0; u < 4; ++u) sums[u] += term(i + u * kWidth);
  }
  for (; i + kWidth <= size; i += kWidth) sums[0] += term(i);
  const Floats all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float sum = 0;
  for (int lane = 0; lane < kWidth; ++lane) sum += all[lane];
  return sum;
}

void modulated_norm(const float* x, const float* scale, const float* shift, float* out,
                    int64_t size, float epsilon) {
  const int64_t whole = size / kWidth * kWidth;
  const auto count = static_cast<float>(size);
  float sum = sum_of(size, [&](int64_t i) { return load<Floats>(x + i); });
  for (int64_t i = whole; i < size; ++i) sum += x[i];
  const float mean = sum / count;
  float squares = sum_of(size, [&](int64_t i) {
    const Floats centred = load<Floats>(x + i) - mean;
    return centred * centred;
  });
  for (int64_t i = whole; i < size; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const float rstd = 1.0f / __builtin_sqrtf(squares / count + epsilon);
  for (int64_t i = 0; i < whole; i += kWidth) {
    const Floats normed = (load<Floats>(x + i) - mean) * rstd;
    store(out + i, normed * (load<Floats>(scale + i) + 1.0f) + load<Floats>(shift + i));
  }
  for (int64_t i = whole; i < size; ++i) {
    out[i] = (x[i] - mean) * rstd * (scale[i] + 1.0f) + shift[i];
  }
}

// Rounds to nearest, ties to even; a NaN stays one.
inline void store_bfloat16(std::byte* to, Floats value) {
  using HalfWords [[gnu::vector_size(kWidth * 2)]] = uint16_t;
  const Words bits = __builtin_bit_cast(Words, value);
  const Words is_nan = __builtin_bit_cast(Words, value != value);
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const auto halves = __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7fc0u), HalfWords);
  __builtin_memcpy(to, &halves, sizeof(halves));
}

void store_head(const float* x, std::byte* out, int64_t size, float length, Storage storage) {
  const int64_t whole = size / kWidth * kWidth;
  float factor = 1;
  if (length > 0) {
    float squares = sum_of(size, [&](int64_t i) {
      const Floats value = load<Floats>(x + i);
      return value * value;
    });
    for (int64_t i = whole; i < size; ++i) squares += x[i] * x[i];
    const float norm = __builtin_sqrtf(squares);
    factor = length / (norm > 1e-12f ? norm : 1e-12f);
  }
  const int64_t item = storage == Storage::kBFloat16 ? 2 : 4;
  const auto put = [storage](std::byte* to, Floats value) {
    if (storage == Storage::kBFloat16) {
      store_bfloat16(to, value);
    } else {
      __builtin_memcpy(to, &value, sizeof(value));
    }
  };
  for (int64_t i = 0; i < whole; i += kWidth) put(out + i * item, load<Floats>(x + i) * factor);
  if (whole == size) return;
  float rest[kWidth] = {};
  for (int64_t i = whole; i < size; ++i) rest[i - whole] = x[i];
  std::byte lanes[kWidth * 4];
  put(lanes, load<Floats>(rest) * factor);
  for (int64_t i = 0; i < (size - whole) * item; ++i) out[whole * item + i] = lanes[i];
}

float guide(const float* conditional, const float* null, float* out, int64_t size, float scale,
            float inverse_temperature) {
  Floats maxima = broadcast(-__builtin_inff());
  float maximum = -__builtin_inff(), check = 0;
  Floats checks{};  // NaN or infinity times zero is NaN
  const int64_t whole = size / kWidth * kWidth;
  for (int64_t i = 0; i < whole; i += kWidth) {
    Floats value = load<Floats>(conditional + i);
    if (null != nullptr) {
      const Floats base = load<Floats>(null + i);
      value = base + (value - base) * scale;
    }
    value *= inverse_temperature;
    store(out + i, value);
    maxima = larger(value, maxima);
    checks += value * 0.0f;
  }
  for (int64_t i = whole; i < size; ++i) {
    float value = conditional[i];
    if (null != nullptr) value = null[i] + (value - null[i]) * scale;
    out[i] = value * inverse_temperature;
    maximum = out[i] > maximum ? out[i] : maximum;
    check += out[i] * 0.0f;
  }
  for (int i = 0; i < kWidth; ++i) {
    maximum = maxima[i] > maximum ? maxima[i] : maximum;
    check += checks[i];
  }
  return maximum + check;
}

void exponentiate(const float* x, float* out, int64_t size, float maximum) {
  const int64_t whole = size / kWidth * kWidth;
  for (int64_t i = 0; i < whole; i += kWidth) {
    store(out + i, exponential(load<Floats>(x + i) - maximum));
  }
  if (whole == size) return;
  float rest[kWidth] = {};
  for (int64_t i = whole; i < size; ++i) rest[i - whole] = x[i];
  store(rest, exponential(load<Floats>(rest) - maximum));
  for (int64_t i = whole; i < size; ++i) out[i] = rest[i - whole];
}

#if !defined(VGEN_HAS_TILES)
constexpr DecodeKernels kKernels{linear,         nullptr,    attend, rms_norm,
                                 modulated_norm, store_head, guide,  exponentiate};
#endif

}  // namespace
}  // namespace vgen::kernels
