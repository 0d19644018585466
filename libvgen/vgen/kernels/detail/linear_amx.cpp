// Products of bfloat16 weights in tiles. Compiled with AMX tiles, their bfloat16 products, and
// AVX-512 with its conversions, on x86-64.
//
// A packed block of weights, [k / 2][32][2], is two columns of tiles as it lies. Inputs come as
// tiles of bfloat16 and, where they are to keep their precision, of what rounding leaves: two
// multiplications for one (decode_kernels.h). It is done so for any number of rows: tokens do not
// depend on the batch.
#include "vgen/kernels/detail/decode_sets.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)

#include <immintrin.h>

#define VGEN_SIMD_WIDTH 16
#include "vgen/kernels/detail/linear_finish.h"

namespace vgen::kernels {
namespace {

// Tiles 0 to 3: sums of 2 x 2 (rows x columns); 4, 5: inputs; 6, 7: weights.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {};
  uint8_t rows[16] = {};
};

inline void configure_tiles(int64_t input_rows) {
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    config.bytes_per_row[i] = 64;
    config.rows[i] = static_cast<uint8_t>(i < 6 ? input_rows : kTileRows);
  }
  _tile_loadconfig(&config);
}

constexpr int64_t kInputRowBytes = 64;
constexpr int64_t kWeightRowBytes = kBlock * 4;                      // 32 pairs
constexpr int64_t kWeightBytes = kTileInputs / 2 * kWeightRowBytes;  // of 32 inputs
constexpr int64_t kAhead = 8 << 10;  // bytes that weights are asked from memory before their use

inline void prefetch_weights(const std::byte* weight) {
  for (int64_t i = 0; i < kWeightBytes; i += 64) __builtin_prefetch(weight + kAhead + i);
}

// Sums 0 to 3 += part of the inputs x and x_next (the tile of the 16 rows below) times weights.
template <bool kTwoTiles>
inline void multiply_part(const std::byte* x, const std::byte* x_next) {
  _tile_loadd(4, x, kInputRowBytes);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if constexpr (kTwoTiles) {
    _tile_loadd(5, x_next, kInputRowBytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// out (16 or 32 rows, 32): inputs of one or two row tiles with one block of weights. The first that
// use a block ask for its weights from memory.
template <int kParts, bool kTwoTiles, bool kIsFirst>
inline void multiply_row_tiles(const std::byte* x, const std::byte* weight, int64_t num_input_tiles,
                               float* out) {
  const std::byte* x_next = x + num_input_tiles * kParts * kTileBytes;
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kTwoTiles) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < num_input_tiles; ++k) {
    _tile_loadd(6, weight, kWeightRowBytes);
    _tile_loadd(7, weight + 64, kWeightRowBytes);
    if constexpr (kIsFirst) prefetch_weights(weight);
    multiply_part<kTwoTiles>(x, x_next);
    if constexpr (kParts == 2) multiply_part<kTwoTiles>(x + kTileBytes, x_next + kTileBytes);
    x += kParts * kTileBytes;
    x_next += kParts * kTileBytes;
    weight += kWeightBytes;
  }
  constexpr int64_t kOutRowBytes = kBlock * 4;
  _tile_stored(0, out, kOutRowBytes);
  _tile_stored(1, out + 16, kOutRowBytes);
  if constexpr (kTwoTiles) {
    _tile_stored(2, out + kTileRows * kBlock, kOutRowBytes);
    _tile_stored(3, out + kTileRows * kBlock + 16, kOutRowBytes);
  }
}

template <int kParts, bool kIsFirst>
inline void multiply_tiles(const std::byte* x, bool has_two, const std::byte* weight,
                           int64_t num_input_tiles, float* out) {
  if (has_two) {
    multiply_row_tiles<kParts, true, kIsFirst>(x, weight, num_input_tiles, out);
  } else {
    multiply_row_tiles<kParts, false, kIsFirst>(x, weight, num_input_tiles, out);
  }
}

template <int kParts>
void linear_tiles(const LinearArgs& args, int64_t first_block, int64_t last_block) {
  constexpr int64_t kPanelBytes = 1 << 20;  // inputs that stay in the second cache
  const int64_t num_input_tiles = args.in_features / kTileInputs;
  const int64_t row_tile_bytes = num_input_tiles * kParts * kTileBytes;
  const int64_t block_bytes = weight_bytes<Storage::kBFloat16>(kBlock * args.in_features);
  const int64_t fitting = kPanelBytes / row_tile_bytes / 2 * 2;
  const int64_t panel_rows = (fitting < 2 ? 2 : fitting) * kTileRows;
  alignas(64) float tile[2 * kTileRows * kBlock];
  configure_tiles(args.num_rows < kTileRows ? args.num_rows : kTileRows);
  for (int64_t panel = 0; panel < args.num_rows; panel += panel_rows) {
    const int64_t end = args.num_rows - panel < panel_rows ? args.num_rows : panel + panel_rows;
    for (int64_t block = first_block; block < last_block; ++block) {
      const std::byte* weight = args.weight + block * block_bytes;
      for (int64_t row = panel; row < end; row += 2 * kTileRows) {
        const int64_t count = end - row < 2 * kTileRows ? end - row : 2 * kTileRows;
        const std::byte* x = args.x_tiles + row / kTileRows * row_tile_bytes;
        if (row == panel) {
          multiply_tiles<kParts, true>(x, count > kTileRows, weight, num_input_tiles, tile);
        } else {
          multiply_tiles<kParts, false>(x, count > kTileRows, weight, num_input_tiles, tile);
        }
        finish_block(args, block, row, count, tile);
      }
    }
  }
  _tile_release();
}

void linear(const LinearArgs& args, int64_t first_block, int64_t last_block) {
  if (args.x_parts == 1) {
    linear_tiles<1>(args, first_block, last_block);
  } else {
    linear_tiles<2>(args, first_block, last_block);
  }
}

using HalfWords [[gnu::vector_size(kWidth * 2)]] = uint16_t;

inline HalfWords round_to_bfloat16(Floats x) {
  return __builtin_bit_cast(HalfWords, _mm512_cvtneps_pbh(__builtin_bit_cast(__m512, x)));
}

void pack(const float* x, int64_t num_rows, int64_t in_features, int64_t num_parts, int64_t first,
          int64_t last, std::byte* to) {
  const int64_t num_input_tiles = (in_features + kTileInputs - 1) / kTileInputs;
  for (int64_t i = first; i < last; ++i) {
    for (int64_t r = 0; r < kTileRows; ++r) {
      const int64_t row = i * kTileRows + r;
      if (row >= num_rows && num_rows < kTileRows) break;
      std::byte* out = to + i * num_input_tiles * num_parts * kTileBytes + r * kInputRowBytes;
      for (int64_t k = 0; k < num_input_tiles * kTileInputs; k += kTileInputs) {
        for (int64_t half = 0; half < kTileInputs; half += kWidth) {
          const int64_t left = row < num_rows ? in_features - k - half : 0;
          const auto mask = static_cast<__mmask16>(left >= kWidth ? 0xffff
                                                   : left <= 0    ? 0
                                                                  : (1 << left) - 1);
          const Floats value = __builtin_bit_cast(
              Floats, _mm512_maskz_loadu_ps(mask, x + row * in_features + k + half));
          const HalfWords rounded = round_to_bfloat16(value);
          __builtin_memcpy(out + half * 2, &rounded, sizeof(rounded));
          if (num_parts == 1) continue;
          const HalfWords rest =
              round_to_bfloat16(value - as_floats(__builtin_convertvector(rounded, Words) << 16));
          __builtin_memcpy(out + kTileBytes + half * 2, &rest, sizeof(rest));
        }
        out += num_parts * kTileBytes;
      }
    }
  }
}

constexpr TileKernels kKernels{.pack = pack, .linear = linear};

}  // namespace

const TileKernels* tiles_amx() { return &kKernels; }

}  // namespace vgen::kernels

#else

namespace vgen::kernels {
const TileKernels* tiles_amx() { return nullptr; }
}  // namespace vgen::kernels

#endif
