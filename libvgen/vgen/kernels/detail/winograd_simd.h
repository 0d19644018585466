#pragma once
// Winograd convolution; see image_kernels.h. Included by image_<isa>.cpp.
// f one of 36 points, I and O input and output channels, "tile" 4 x 4 outputs from 6 x 6 inputs.
#include "vgen/kernels/detail/float_simd.h"
#include "vgen/kernels/detail/image_kernels.h"

namespace vgen::kernels {
namespace {

constexpr int64_t kPanel = 2 * kWidth;     ///< output channels held in two vectors
constexpr int64_t kRows = VGEN_SIMD_ROWS;  ///< tiles times two accumulators in registers
constexpr int64_t kBlockTiles = 48;        ///< a multiple of kRows
static_assert(kBlockTiles % kRows == 0);

inline int64_t padded(int64_t channels) { return (channels + kPanel - 1) / kPanel * kPanel; }

/// Floats between two points f. The 16 keep 36 equal offsets out of one set of the cache.
inline int64_t point_stride(int64_t tiles, int64_t row) { return tiles * row + 16; }

// ---- the transforms in one dimension. a = sqrt(1/2), b = sqrt(2); a b = 1, a^2 + b^2 = 5/2
constexpr float kA = 0.70710678f, kB = 1.41421356f;

/// B^T x
inline void input_transform(const Floats x[6], Floats y[6]) {
  const Floats even_a = x[4] - 2.0f * x[2], odd_a = kA * x[3] - kB * x[1];
  const Floats even_b = x[4] - 0.5f * x[2], odd_b = kB * x[3] - kA * x[1];
  y[0] = x[0] - 2.5f * x[2] + x[4];
  y[1] = even_a + odd_a;
  y[2] = even_a - odd_a;
  y[3] = even_b + odd_b;
  y[4] = even_b - odd_b;
  y[5] = x[1] - 2.5f * x[3] + x[5];
}

/// A^T x
inline void output_transform(const Floats x[6], Floats y[4]) {
  const Floats sum_a = x[1] + x[2], difference_a = x[1] - x[2];
  const Floats sum_b = x[3] + x[4], difference_b = x[3] - x[4];
  y[0] = x[0] + sum_a + sum_b;
  y[1] = kA * difference_a + kB * difference_b;
  y[2] = 0.5f * sum_a + 2.0f * sum_b;
  y[3] = (0.5f * kA) * difference_a + (2.0f * kB) * difference_b + x[5];
}

/// A x: the transpose of output_transform
inline void gradient_transform(const Floats x[4], Floats y[6]) {
  const Floats even_a = x[0] + 0.5f * x[2], odd_a = kA * x[1] + (0.5f * kA) * x[3];
  const Floats even_b = x[0] + 2.0f * x[2], odd_b = kB * x[1] + (2.0f * kB) * x[3];
  y[0] = x[0];
  y[1] = even_a + odd_a;
  y[2] = even_a - odd_a;
  y[3] = even_b + odd_b;
  y[4] = even_b - odd_b;
  y[5] = x[3];
}

/// G x
inline void weight_transform(const Floats x[3], Floats y[6]) {
  const Floats even_a = (x[0] + 0.5f * x[2]) * (-1.0f / 1.5f), odd_a = x[1] * (-kA / 1.5f);
  const Floats even_b = (x[0] + 2.0f * x[2]) * (1.0f / 6.0f), odd_b = x[1] * (kB / 6.0f);
  y[0] = x[0];
  y[1] = even_a + odd_a;
  y[2] = even_a - odd_a;
  y[3] = even_b + odd_b;
  y[4] = even_b - odd_b;
  y[5] = x[2];
}

/// G^T x
inline void weight_gradient_transform(const Floats x[6], Floats y[3]) {
  const Floats sum_a = (x[1] + x[2]) * (-1.0f / 1.5f), sum_b = (x[3] + x[4]) * (1.0f / 6.0f);
  y[0] = x[0] + sum_a + sum_b;
  y[1] = (x[1] - x[2]) * (-kA / 1.5f) + (x[3] - x[4]) * (kB / 6.0f);
  y[2] = 0.5f * sum_a + 2.0f * sum_b + x[5];
}

// ---- weights

/// (O, I, 3, 3), or (I, O, 3, 3) with both kernel axes reversed.
struct WinogradWeight {
  const float* values;
  int64_t out_channels, in_channels;
  bool is_flipped;
};

/// One step of a transposition: in each square of 2 step rows and columns the quarters off the
/// diagonal change places.
template <int64_t step>
inline void exchange(Floats rows[kWidth]) {
  Ints low, high;
  for (int64_t lane = 0; lane < kWidth; ++lane) {
    const bool is_second = (lane & step) != 0;
    low[lane] = static_cast<int32_t>(is_second ? kWidth + lane - step : lane);
    high[lane] = static_cast<int32_t>(is_second ? kWidth + lane : lane + step);
  }
#pragma GCC unroll 16
  for (int64_t r = 0; r < kWidth; ++r) {
    if ((r & step) != 0) continue;
    const Floats a = rows[r], b = rows[r + step];
    rows[r] = __builtin_shuffle(a, b, low);
    rows[r + step] = __builtin_shuffle(a, b, high);
  }
}

inline void transpose(Floats rows[kWidth]) {
  exchange<1>(rows);
  exchange<2>(rows);
  if constexpr (kWidth >= 8) exchange<4>(rows);
  if constexpr (kWidth >= 16) exchange<8>(rows);
}

/// taps[i][k]: tap k of input channel begin + i for kWidth output channels; lanes past the last one
/// are zero.
inline void gather_taps(const WinogradWeight& weight, int64_t first, int64_t begin,
                        Floats taps[kWidth][9]) {
  const int64_t lanes = min_of(kWidth, weight.out_channels - first);
  const int64_t count = min_of(kWidth, weight.in_channels - begin);
  if (!weight.is_flipped && lanes == kWidth && count == kWidth) {
    const int64_t stride = weight.in_channels * 9;
    const float* from = weight.values + first * stride + begin * 9;
    Floats* to = &taps[0][0];
    for (int64_t block = 0; block < 9; ++block) {
      Floats rows[kWidth];
#pragma GCC unroll 16
      for (int64_t o = 0; o < kWidth; ++o) rows[o] = load(from + o * stride + block * kWidth);
      transpose(rows);
#pragma GCC unroll 16
      for (int64_t at = 0; at < kWidth; ++at) to[block * kWidth + at] = rows[at];
    }
    return;
  }
  const int64_t o_stride = weight.is_flipped ? 9 : weight.in_channels * 9;
  const int64_t i_stride = weight.is_flipped ? weight.out_channels * 9 : 9;
  const float* from = weight.values + first * o_stride + begin * i_stride;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t k = 0; k < 9; ++k) {
      const float* tap = from + i * i_stride + (weight.is_flipped ? 8 - k : k);
      float values[kWidth] = {};
      for (int64_t o = 0; o < lanes; ++o) values[o] = tap[o * o_stride];
      taps[i][k] = load(values);
    }
  }
}

/// One panel: packed[f * f_stride + i * kPanel + lane].
void pack_panel(const WinogradWeight& weight, int64_t panel, int64_t f_stride, float* packed) {
  for (int64_t half = 0; half < 2; ++half) {
    for (int64_t begin = 0; begin < weight.in_channels; begin += kWidth) {
      Floats taps[kWidth][9];
      gather_taps(weight, panel * kPanel + half * kWidth, begin, taps);
      const int64_t count = min_of(kWidth, weight.in_channels - begin);
      for (int64_t i = 0; i < count; ++i) {
        Floats rows[6][3];
        for (int64_t x = 0; x < 3; ++x) {
          const Floats column[3] = {taps[i][x], taps[i][3 + x], taps[i][6 + x]};
          Floats result[6];
          weight_transform(column, result);
          for (int64_t f = 0; f < 6; ++f) rows[f][x] = result[f];
        }
        float* to = packed + (begin + i) * kPanel + half * kWidth;
        for (int64_t fy = 0; fy < 6; ++fy) {
          Floats result[6];
          weight_transform(rows[fy], result);
          for (int64_t fx = 0; fx < 6; ++fx) store(to + (fy * 6 + fx) * f_stride, result[fx]);
        }
      }
    }
  }
}

void winograd_pack(const float* weight, int64_t out_channels, int64_t in_channels, bool is_flipped,
                   int64_t begin, int64_t end, float* packed) {
  const int64_t panel_size = in_channels * kPanel;
  const int64_t panels = padded(out_channels) / kPanel;
  for (int64_t panel = begin; panel < end; ++panel) {
    pack_panel({weight, out_channels, in_channels, is_flipped}, panel, panels * panel_size,
               packed + panel * panel_size);
  }
}

// ---- tiles

struct TilePlace {
  int64_t image, y, x;  ///< of the first output
};

inline TilePlace place_of(const WinogradShape& shape, int64_t tile) {
  const int64_t tiles_x = shape.tiles_x(), tiles_y = shape.tiles_y();
  return {tile / (tiles_x * tiles_y), tile / tiles_x % tiles_y * kWinogradTile,
          tile % tiles_x * kWinogradTile};
}

/// One tile: to[f * f_stride + c] for all input channels, lanes past the last one are zero.
template <class T>
inline void transform_input_tile(const WinogradShape& shape, const T* in, const TilePlace& place,
                                 float* to, int64_t f_stride) {
  const int64_t up = shape.is_upsampled ? 1 : 0, channels = shape.in_channels;
  const int64_t in_height = shape.height >> up, in_width = shape.width >> up;
  const T* pixels[6][6];
  for (int64_t i = 0; i < 6; ++i) {
    for (int64_t j = 0; j < 6; ++j) {
      const int64_t y = place.y + i - 1, x = place.x + j - 1;
      const bool is_inside = y >= 0 && x >= 0 && y < shape.height && x < shape.width;
      pixels[i][j] =
          is_inside ? in + ((place.image * in_height + (y >> up)) * in_width + (x >> up)) * channels
                    : nullptr;
    }
  }
  for (int64_t c = 0; c < channels; c += kWidth) {
    Floats columns[6][6];  // [fy][x]
    for (int64_t j = 0; j < 6; ++j) {
      Floats column[6], result[6];
      for (int64_t i = 0; i < 6; ++i) {
        column[i] = pixels[i][j] == nullptr ? Floats{} : load_some(pixels[i][j] + c, channels - c);
      }
      input_transform(column, result);
      for (int64_t f = 0; f < 6; ++f) columns[f][j] = result[f];
    }
    for (int64_t f = 0; f < 6; ++f) {
      Floats result[6];
      input_transform(columns[f], result);
      for (int64_t j = 0; j < 6; ++j) store(to + (f * 6 + j) * f_stride + c, result[j]);
    }
  }
}

/// acc[r][.] = sum over k of a[r * row + k * step] * b[k * b_step ...]; added to c where `add`.
template <bool add>
inline void multiply_rows(const float* a, int64_t row, int64_t step, const float* b, int64_t b_step,
                          int64_t depth, float* c, int64_t c_row) {
  Floats acc[kRows][2];
  for (int64_t r = 0; r < kRows; ++r) acc[r][0] = acc[r][1] = Floats{};
  for (int64_t k = 0; k < depth; ++k) {
    const Floats b0 = load(b + k * b_step), b1 = load(b + k * b_step + kWidth);
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) {
      const Floats x = splat(a[r * row + k * step]);
      acc[r][0] += x * b0;
      acc[r][1] += x * b1;
    }
  }
#pragma GCC unroll 16
  for (int64_t r = 0; r < kRows; ++r) {
    float* to = c + r * c_row;
    store(to, add ? load(to) + acc[r][0] : acc[r][0]);
    store(to + kWidth, add ? load(to + kWidth) + acc[r][1] : acc[r][1]);
  }
}

template <class T>
inline void transform_output_tile(const WinogradForward& args, const float* from, int64_t f_stride,
                                  const TilePlace& place) {
  const WinogradShape& shape = args.shape;
  const int64_t channels = shape.out_channels;
  const int64_t rows = min_of(kWinogradTile, shape.height - place.y);
  const int64_t columns = min_of(kWinogradTile, shape.width - place.x);
  const int64_t offset =
      ((place.image * shape.height + place.y) * shape.width + place.x) * channels;
  T* out = static_cast<T*>(args.out.data) + offset;
  const T* residual =
      args.residual.data == nullptr ? nullptr : static_cast<const T*>(args.residual.data) + offset;
  for (int64_t c = 0; c < channels; c += kWidth) {
    Floats half[4][6];
    for (int64_t j = 0; j < 6; ++j) {
      Floats column[6], result[4];
      for (int64_t i = 0; i < 6; ++i) column[i] = load(from + (i * 6 + j) * f_stride + c);
      output_transform(column, result);
      for (int64_t i = 0; i < 4; ++i) half[i][j] = result[i];
    }
    const Floats bias = args.bias == nullptr ? Floats{} : load_some(args.bias + c, channels - c);
    for (int64_t i = 0; i < rows; ++i) {
      Floats result[4];
      output_transform(half[i], result);
      for (int64_t j = 0; j < columns; ++j) {
        const int64_t at = (i * shape.width + j) * channels + c;
        Floats value = result[j] + bias;
        if (residual != nullptr) value += load_some(residual + at, channels - c);
        store_some(out + at, value, channels - c);
      }
    }
  }
}

int64_t winograd_scratch(const WinogradShape& shape) {
  return kWinogradPoints * (point_stride(kBlockTiles, padded(shape.in_channels)) +
                            point_stride(kBlockTiles, padded(shape.out_channels)));
}

template <class T>
void winograd_forward_as(const WinogradForward& args, int64_t begin, int64_t end, float* scratch) {
  const WinogradShape& shape = args.shape;
  const int64_t in_row = padded(shape.in_channels), out_row = padded(shape.out_channels);
  const int64_t panels = out_row / kPanel;
  const int64_t in_stride = point_stride(kBlockTiles, in_row);
  const int64_t out_stride = point_stride(kBlockTiles, out_row);
  float* input = scratch;                                 // [36][kBlockTiles][in_row]
  float* output = scratch + kWinogradPoints * in_stride;  // [36][kBlockTiles][out_row]
  for (int64_t first = begin; first < end; first += kBlockTiles) {
    const int64_t count = min_of(kBlockTiles, end - first);
    for (int64_t t = 0; t < count; ++t) {
      transform_input_tile(shape, static_cast<const T*>(args.in.data), place_of(shape, first + t),
                           input + t * in_row, in_stride);
    }
    for (int64_t f = 0; f < kWinogradPoints; ++f) {
      const float* a = input + f * in_stride;
      float* c = output + f * out_stride;
      for (int64_t panel = 0; panel < panels; ++panel) {
        const float* b = args.packed + (f * panels + panel) * shape.in_channels * kPanel;
        for (int64_t t = 0; t < count; t += kRows) {
          multiply_rows<false>(a + t * in_row, in_row, 1, b, kPanel, shape.in_channels,
                               c + t * out_row + panel * kPanel, out_row);
        }
      }
    }
    for (int64_t t = 0; t < count; ++t) {
      transform_output_tile<T>(args, output + t * out_row, out_stride, place_of(shape, first + t));
    }
  }
}

void winograd_forward(const WinogradForward& args, int64_t begin, int64_t end, float* scratch) {
  if (args.in.is_bf16) {
    winograd_forward_as<Bf16>(args, begin, end, scratch);
  } else {
    winograd_forward_as<float>(args, begin, end, scratch);
  }
}

// ---- the same in three steps, of which the second makes the weights as it goes

int64_t winograd_products_scratch(const WinogradShape& shape) {
  return kWinogradPoints * point_stride(shape.in_channels, kPanel);
}

void winograd_products(const WinogradProducts& products, int64_t begin, int64_t end,
                       float* scratch) {
  const int64_t in_channels = products.shape.in_channels, count = products.count;
  const int64_t out_channels = products.shape.out_channels;
  const int64_t in_row = padded(in_channels), out_row = padded(out_channels);
  const int64_t packed_stride = point_stride(in_channels, kPanel);
  for (int64_t panel = begin; panel < end; ++panel) {
    pack_panel({products.weight, out_channels, in_channels, products.is_flipped}, panel,
               packed_stride, scratch);
    for (int64_t f = 0; f < kWinogradPoints; ++f) {
      const float* a = products.input + f * point_stride(count, in_row);
      float* c = products.output + f * point_stride(count, out_row) + panel * kPanel;
      for (int64_t t = 0; t < count; t += kRows) {
        multiply_rows<false>(a + t * in_row, in_row, 1, scratch + f * packed_stride, kPanel,
                             in_channels, c + t * out_row, out_row);
      }
    }
  }
}

void winograd_output(const WinogradForward& args, const WinogradProducts& products, int64_t begin,
                     int64_t end) {
  const int64_t row = padded(args.shape.out_channels);
  const int64_t stride = point_stride(products.count, row);
  for (int64_t tile = begin; tile < end; ++tile) {
    const float* from = products.output + tile * row;
    const TilePlace place = place_of(args.shape, tile);
    if (args.in.is_bf16) {
      transform_output_tile<Bf16>(args, from, stride, place);
    } else {
      transform_output_tile<float>(args, from, stride, place);
    }
  }
}

// ---- gradient to the weights

void zero_tail(float* row, int64_t f_stride, int64_t channels) {
  const int64_t from = (channels + kWidth - 1) / kWidth * kWidth;
  for (int64_t f = 0; f < kWinogradPoints; ++f) {
    for (int64_t c = from; c < padded(channels); ++c) row[f * f_stride + c] = 0;
  }
}

void winograd_input(const WinogradShape& shape, Pixels in, int64_t first, int64_t count,
                    int64_t begin, int64_t end, float* to) {
  const int64_t row = padded(shape.in_channels), stride = point_stride(count, row);
  for (int64_t tile = begin; tile < end; ++tile) {
    float* at = to + (tile - first) * row;
    const TilePlace place = place_of(shape, tile);
    if (in.is_bf16) {
      transform_input_tile(shape, static_cast<const Bf16*>(in.data), place, at, stride);
    } else {
      transform_input_tile(shape, static_cast<const float*>(in.data), place, at, stride);
    }
    zero_tail(at, stride, shape.in_channels);
  }
}

template <class T>
inline void transform_gradient_tile(const WinogradShape& shape, const T* gradient,
                                    const TilePlace& place, float* to, int64_t f_stride) {
  const int64_t channels = shape.out_channels;
  const int64_t rows = min_of(kWinogradTile, shape.height - place.y);
  const int64_t columns = min_of(kWinogradTile, shape.width - place.x);
  const T* from =
      gradient + ((place.image * shape.height + place.y) * shape.width + place.x) * channels;
  for (int64_t c = 0; c < channels; c += kWidth) {
    Floats half[6][4];
    for (int64_t j = 0; j < 4; ++j) {
      Floats column[4], result[6];
      for (int64_t i = 0; i < 4; ++i) {
        const bool is_inside = i < rows && j < columns;
        column[i] = is_inside ? load_some(from + (i * shape.width + j) * channels + c, channels - c)
                              : Floats{};
      }
      gradient_transform(column, result);
      for (int64_t f = 0; f < 6; ++f) half[f][j] = result[f];
    }
    for (int64_t f = 0; f < 6; ++f) {
      Floats result[6];
      gradient_transform(half[f], result);
      for (int64_t j = 0; j < 6; ++j) store(to + (f * 6 + j) * f_stride + c, result[j]);
    }
  }
}

void winograd_gradient(const WinogradShape& shape, Pixels gradient, int64_t first, int64_t count,
                       int64_t begin, int64_t end, float* to) {
  const int64_t row = padded(shape.out_channels), stride = point_stride(count, row);
  for (int64_t tile = begin; tile < end; ++tile) {
    float* at = to + (tile - first) * row;
    const TilePlace place = place_of(shape, tile);
    if (gradient.is_bf16) {
      transform_gradient_tile(shape, static_cast<const Bf16*>(gradient.data), place, at, stride);
    } else {
      transform_gradient_tile(shape, static_cast<const float*>(gradient.data), place, at, stride);
    }
    zero_tail(at, stride, shape.out_channels);
  }
}

void winograd_accumulate(const WinogradShape& shape, int64_t f, int64_t count, const float* input,
                         const float* gradient, float* sum) {
  const int64_t in_row = padded(shape.in_channels), out_row = padded(shape.out_channels);
  const int64_t sum_rows = (in_row + kRows - 1) / kRows * kRows;
  const float* a = input + f * point_stride(count, in_row);
  const float* b = gradient + f * point_stride(count, out_row);
  float* c = sum + f * sum_rows * out_row;
  for (int64_t panel = 0; panel < out_row; panel += kPanel) {
    for (int64_t i = 0; i < in_row; i += kRows) {
      multiply_rows<true>(a + i, 1, in_row, b + panel, out_row, count, c + i * out_row + panel,
                          out_row);
    }
  }
}

void winograd_weight_gradient(const WinogradShape& shape, const float* sum, int64_t begin,
                              int64_t end, float* weight_gradient) {
  const int64_t in_row = padded(shape.in_channels), out_row = padded(shape.out_channels);
  const int64_t sum_rows = (in_row + kRows - 1) / kRows * kRows;
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t o = 0; o < shape.out_channels; o += kWidth) {
      Floats half[3][6];
      for (int64_t j = 0; j < 6; ++j) {
        Floats column[6], result[3];
        for (int64_t f = 0; f < 6; ++f) {
          column[f] = load(sum + ((f * 6 + j) * sum_rows + i) * out_row + o);
        }
        weight_gradient_transform(column, result);
        for (int64_t k = 0; k < 3; ++k) half[k][j] = result[k];
      }
      for (int64_t ky = 0; ky < 3; ++ky) {
        Floats result[3];
        weight_gradient_transform(half[ky], result);
        for (int64_t kx = 0; kx < 3; ++kx) {
          const int64_t count = min_of(kWidth, shape.out_channels - o);
          for (int64_t lane = 0; lane < count; ++lane) {
            weight_gradient[((o + lane) * shape.in_channels + i) * 9 + ky * 3 + kx] =
                result[kx][lane];
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace vgen::kernels
