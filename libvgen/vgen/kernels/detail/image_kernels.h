#pragma once
// The inner loops of convolution, group norm and nearest-code search on the CPU, one table of them
// per instruction set. Memory is channels-last throughout: pixel (b, y, x) of a tensor with C
// channels begins at ((b H + y) W + x) C. Each function handles a range of independent work and is
// called from several threads at once on disjoint ranges. No LibTorch in here.

#include <cstdint>

#include "vgen/kernels/cpu_isa.h"
#include "vgen/kernels/detail/elements.h"

namespace vgen::kernels {

using Pixels = Elements;  ///< activations

inline constexpr int64_t kWinogradPoints = 36;  ///< values of a transformed 6 x 6 tile
inline constexpr int64_t kWinogradTile = 4;     ///< outputs per side of a tile

/// A 3x3 convolution of stride 1 and padding 1 as F(4x4, 3x3) of Winograd (arXiv:1509.09308), with
/// the interpolation points 0, +-sqrt(1/2), +-sqrt(2) and infinity: 4 times fewer multiplications,
/// and a rounding error below that of the usual integer points.
struct WinogradShape {
  int64_t batch = 0, height = 0, width = 0;  ///< of the output
  int64_t in_channels = 0, out_channels = 0;
  bool is_upsampled = false;  ///< the input has half the height and width and is doubled (nearest)

  int64_t tiles_y() const { return (height + kWinogradTile - 1) / kWinogradTile; }
  int64_t tiles_x() const { return (width + kWinogradTile - 1) / kWinogradTile; }
  int64_t tiles() const { return batch * tiles_y() * tiles_x(); }
};

struct WinogradForward {
  WinogradShape shape;
  Pixels in, out;
  Pixels residual;                ///< added to the output; null data: none
  const float* packed = nullptr;  ///< of winograd_pack; winograd_output needs none
  const float* bias = nullptr;    ///< (out_channels) or null
};

/// The products of a convolution alone, of all tiles.
struct WinogradProducts {
  WinogradShape shape;
  const float* weight = nullptr;  ///< as winograd_pack takes it
  bool is_flipped = false;
  int64_t count = 0;             ///< tiles, rounded up to a multiple of `rows`
  const float* input = nullptr;  ///< [36][count][padded I], of winograd_input
  float* output = nullptr;       ///< [36][count][padded O]
};

struct GroupNormShape {
  int64_t batch = 0, pixels = 0, channels = 0;
};

struct ImageKernels {
  CpuIsa isa;
  int64_t width;        ///< floats per vector
  int64_t panel;        ///< output channels per panel of packed weights
  int64_t rows;         ///< rows of products come in multiples of this
  int64_t block_tiles;  ///< tiles that winograd_forward handles at once

  /// Weights in the transformed domain: [36][ceil(O / panel)][I][panel], panels [begin, end).
  /// weight: (O, I, 3, 3) contiguous. is_flipped: the weights of the gradient to the input, i.e.
  /// weight is (I, O, 3, 3) and both kernel axes are reversed.
  void (*winograd_pack)(const float* weight, int64_t out_channels, int64_t in_channels,
                        bool is_flipped, int64_t begin, int64_t end, float* packed);
  /// Floats of scratch memory that winograd_forward needs.
  int64_t (*winograd_scratch)(const WinogradShape& shape);
  /// Tiles [begin, end).
  void (*winograd_forward)(const WinogradForward& args, int64_t begin, int64_t end, float* scratch);

  /// The same in three steps over all tiles: winograd_input, then these two. Each panel of
  /// transformed weights exists only while it is used, in winograd_products_scratch floats.
  int64_t (*winograd_products_scratch)(const WinogradShape& shape);
  /// Panels [begin, end).
  void (*winograd_products)(const WinogradProducts& products, int64_t begin, int64_t end,
                            float* scratch);
  /// Tiles [begin, end) of products.output.
  void (*winograd_output)(const WinogradForward& args, const WinogradProducts& products,
                          int64_t begin, int64_t end);

  /// Gradient to the weights, in three steps over blocks of `count` tiles. Rows of the transformed
  /// tensors are padded with zeros to a multiple of `panel` channels.
  /// 1. Transforms tiles [begin, end) of the input: to[36][count][padded I], counted from `first`.
  void (*winograd_input)(const WinogradShape& shape, Pixels in, int64_t first, int64_t count,
                         int64_t begin, int64_t end, float* to);
  /// 1. The same of the gradient to the output: to[36][count][padded O].
  void (*winograd_gradient)(const WinogradShape& shape, Pixels gradient, int64_t first,
                            int64_t count, int64_t begin, int64_t end, float* to);
  /// 2. sum[f][padded I][padded O] += input[f]^T gradient[f] for one f.
  void (*winograd_accumulate)(const WinogradShape& shape, int64_t f, int64_t count,
                              const float* input, const float* gradient, float* sum);
  /// 3. gradient (O, I, 3, 3) of input channels [begin, end) from the sums.
  void (*winograd_weight_gradient)(const WinogradShape& shape, const float* sum, int64_t begin,
                                   int64_t end, float* weight_gradient);

  /// Per channel over pixels [begin, end) of one image: sums of x - pivot and (x - pivot)^2, pivot
  /// being the image's first pixel.
  void (*group_norm_sums)(const GroupNormShape& shape, Pixels in, int64_t image, int64_t begin,
                          int64_t end, float* sum, float* square_sum);
  /// y = x * scale + shift per channel of that image, then x * sigmoid(x) where has_silu.
  void (*group_norm_apply)(const GroupNormShape& shape, Pixels in, Pixels out, const float* scale,
                           const float* shift, bool has_silu, int64_t image, int64_t begin,
                           int64_t end);
  /// Per channel: sums of dt and dt * x, where t = x * scale + shift and dt is the gradient to t.
  void (*group_norm_gradient_sums)(const GroupNormShape& shape, Pixels in, Pixels gradient,
                                   const float* scale, const float* shift, bool has_silu,
                                   int64_t image, int64_t begin, int64_t end, float* sum,
                                   float* product_sum);
  /// dx = dt * scale + x * slope + offset per channel.
  void (*group_norm_gradient)(const GroupNormShape& shape, Pixels in, Pixels gradient, Pixels out,
                              const float* scale, const float* shift, const float* slope,
                              const float* offset, bool has_silu, int64_t image, int64_t begin,
                              int64_t end);

  /// Index of the smallest |e_j|^2 - 2 z_i.e_j for rows [begin, end) of z (N, D), the first of
  /// equals; 0 for a row with a NaN. codes: [ceil(V / width)][D][width], squares: V padded to
  /// `width` with infinity.
  void (*nearest_code)(const float* z, int64_t dim, const float* codes, const float* squares,
                       int64_t padded_codes, int64_t begin, int64_t end, int64_t* index);
};

/// The best table that is not above `isa` and that this processor runs.
const ImageKernels& image_kernels(CpuIsa isa);

/// The sets that this build has; null where the compiler's target has no such instructions.
const ImageKernels* image_kernels_portable();
const ImageKernels* image_kernels_avx2();
const ImageKernels* image_kernels_avx512();

}  // namespace vgen::kernels
