#pragma once
// y = x W^T in vectors; see decode_vectors.h. The including source defines widen_int8, which loads
// kWidth bytes as Ints.
#include "vgen/kernels/detail/decode_vectors.h"
#include "vgen/kernels/detail/linear_finish.h"

namespace vgen::kernels {
namespace {

// Rows and vectors whose sums fit the registers: many vectors for few rows, so that each weight is
// loaded and converted once; fewer vectors for more rows, so that each is used more often.
constexpr int kWideVectors = kWidth == 16 ? 2 : 4;
constexpr int kWideRows = kWidth == 16 ? 10 : kWidth == 8 ? 3 : 2;
constexpr int kNarrowVectors = 2;
constexpr int kNarrowRows = kWidth == 16 ? 10 : kWidth == 8 ? 6 : 4;
constexpr int kMaxRows = 64;               // per pass over the weights
constexpr int64_t kChunkBytes = 16 << 10;  // of a block: stays in the first-level cache

inline Floats load_int8(const std::byte* from) {
  return __builtin_convertvector(widen_int8(from), Floats);
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

}  // namespace
}  // namespace vgen::kernels
