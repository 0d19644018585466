#pragma once
// Group norm, nearest code; see image_kernels.h. Included by image_<isa>.cpp.
#include "vgen/kernels/detail/float_simd.h"
#include "vgen/kernels/detail/image_kernels.h"

namespace vgen::kernels {
namespace {

template <class T>
inline const T* pixels_of(const GroupNormShape& shape, Pixels tensor, int64_t image) {
  return static_cast<const T*>(tensor.data) + image * shape.pixels * shape.channels;
}

/// Columns of kWidth * kUnroll channels at a time stay in registers over the pixels of a range.
constexpr int64_t kUnroll = 4;

template <class T, int64_t unroll>
inline void sums_of_channels(const T* in, const T* pivots, int64_t channels, int64_t c,
                             int64_t begin, int64_t end, float* sum, float* square_sum) {
  Floats pivot[unroll], sums[unroll] = {}, squares[unroll] = {};
  for (int64_t u = 0; u < unroll; ++u) {
    pivot[u] = load_some(pivots + c + u * kWidth, channels - c - u * kWidth);
  }
  for (int64_t p = begin; p < end; ++p) {
    const T* at = in + p * channels + c;
    for (int64_t u = 0; u < unroll; ++u) {
      const Floats x = load_some(at + u * kWidth, channels - c - u * kWidth) - pivot[u];
      sums[u] += x;
      squares[u] += x * x;
    }
  }
  for (int64_t u = 0; u < unroll; ++u) {
    store_some(sum + c + u * kWidth, sums[u], channels - c - u * kWidth);
    store_some(square_sum + c + u * kWidth, squares[u], channels - c - u * kWidth);
  }
}

void group_norm_sums(const GroupNormShape& shape, Pixels in, int64_t image, int64_t begin,
                     int64_t end, float* sum, float* square_sum) {
  const int64_t channels = shape.channels;
  by_type(in.is_bf16, [&](auto type) {
    using T = decltype(type);
    const T* pixels = pixels_of<T>(shape, in, image);
    int64_t c = 0;
    for (; c + kUnroll * kWidth <= channels; c += kUnroll * kWidth) {
      sums_of_channels<T, kUnroll>(pixels, pixels, channels, c, begin, end, sum, square_sum);
    }
    for (; c < channels; c += kWidth) {
      sums_of_channels<T, 1>(pixels, pixels, channels, c, begin, end, sum, square_sum);
    }
  });
}

void group_norm_apply(const GroupNormShape& shape, Pixels in, Pixels out, const float* scale,
                      const float* shift, bool has_silu, int64_t image, int64_t begin,
                      int64_t end) {
  const int64_t channels = shape.channels;
  by_type(in.is_bf16, [&](auto type) {
    using T = decltype(type);
    const T* from = pixels_of<T>(shape, in, image);
    T* to = const_cast<T*>(pixels_of<T>(shape, out, image));
    for (int64_t p = begin; p < end; ++p) {
      for (int64_t c = 0; c < channels; c += kWidth) {
        const int64_t at = p * channels + c, count = channels - c;
        Floats t =
            load_some(from + at, count) * load_some(scale + c, count) + load_some(shift + c, count);
        if (has_silu) t = t * sigmoid(t);
        store_some(to + at, t, count);
      }
    }
  });
}

/// Gradient to t = x * scale + shift.
inline Floats gradient_to_norm(Floats x, Floats gradient, Floats scale, Floats shift,
                               bool has_silu) {
  if (!has_silu) return gradient;
  const Floats t = x * scale + shift, s = sigmoid(t);
  return gradient * (s * (1.0f + t * (1.0f - s)));
}

void group_norm_gradient_sums(const GroupNormShape& shape, Pixels in, Pixels gradient,
                              const float* scale, const float* shift, bool has_silu, int64_t image,
                              int64_t begin, int64_t end, float* sum, float* product_sum) {
  const int64_t channels = shape.channels;
  by_type(in.is_bf16, [&](auto type) {
    using T = decltype(type);
    const T* from = pixels_of<T>(shape, in, image);
    const T* dy = pixels_of<T>(shape, gradient, image);
    for (int64_t c = 0; c < channels; c += kWidth) {
      const int64_t count = channels - c;
      const Floats scales = load_some(scale + c, count), shifts = load_some(shift + c, count);
      Floats sums = {}, products = {};
      for (int64_t p = begin; p < end; ++p) {
        const Floats x = load_some(from + p * channels + c, count);
        const Floats dt =
            gradient_to_norm(x, load_some(dy + p * channels + c, count), scales, shifts, has_silu);
        sums += dt;
        products += dt * x;
      }
      store_some(sum + c, sums, count);
      store_some(product_sum + c, products, count);
    }
  });
}

void group_norm_gradient(const GroupNormShape& shape, Pixels in, Pixels gradient, Pixels out,
                         const float* scale, const float* shift, const float* slope,
                         const float* offset, bool has_silu, int64_t image, int64_t begin,
                         int64_t end) {
  const int64_t channels = shape.channels;
  by_type(in.is_bf16, [&](auto type) {
    using T = decltype(type);
    const T* from = pixels_of<T>(shape, in, image);
    const T* dy = pixels_of<T>(shape, gradient, image);
    T* to = const_cast<T*>(pixels_of<T>(shape, out, image));
    for (int64_t p = begin; p < end; ++p) {
      for (int64_t c = 0; c < channels; c += kWidth) {
        const int64_t at = p * channels + c, count = channels - c;
        const Floats x = load_some(from + at, count), scales = load_some(scale + c, count);
        const Floats dt = gradient_to_norm(x, load_some(dy + at, count), scales,
                                           load_some(shift + c, count), has_silu);
        store_some(to + at,
                   dt * scales + x * load_some(slope + c, count) + load_some(offset + c, count),
                   count);
      }
    }
  });
}

// ---- nearest code

/// Rows whose best distances stay in registers over a pass through the codes.
constexpr int64_t kCodeRows = 4;

inline void nearest_of_rows(const float* z, int64_t dim, int64_t rows, const float* codes,
                            const float* squares, int64_t padded_codes, int64_t* index) {
  Floats best[kCodeRows];
  Ints best_block[kCodeRows];
  const float* row[kCodeRows];
  for (int64_t r = 0; r < kCodeRows; ++r) {
    best[r] = splat(__builtin_inff());
    best_block[r] = Ints{};
    row[r] = z + (r < rows ? r : 0) * dim;
  }
  for (int64_t v = 0; v < padded_codes; v += kWidth) {
    Floats dot[kCodeRows] = {};
    const float* block = codes + v * dim;
    for (int64_t d = 0; d < dim; ++d) {
      const Floats code = load(block + d * kWidth);
#pragma GCC unroll 8
      for (int64_t r = 0; r < kCodeRows; ++r) dot[r] += splat(row[r][d]) * code;
    }
    const Floats square = load(squares + v);
    const Ints number = Ints{} + static_cast<int32_t>(v / kWidth);
#pragma GCC unroll 8
    for (int64_t r = 0; r < kCodeRows; ++r) {
      const Floats distance = square - 2.0f * dot[r];
      const Ints is_less = distance < best[r];  // a later equal one does not replace
      best[r] = is_less ? distance : best[r];
      best_block[r] = is_less ? number : best_block[r];
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    float smallest = __builtin_inff();
    int64_t first = 0;
    for (int64_t lane = 0; lane < kWidth; ++lane) {
      const int64_t code = best_block[r][lane] * kWidth + lane;
      const float distance = best[r][lane];
      if (distance < smallest || (distance == smallest && code < first)) {
        smallest = distance;
        first = code;
      }
    }
    index[r] = smallest == __builtin_inff() ? 0 : first;
  }
}

void nearest_code(const float* z, int64_t dim, const float* codes, const float* squares,
                  int64_t padded_codes, int64_t begin, int64_t end, int64_t* index) {
  for (int64_t n = begin; n < end; n += kCodeRows) {
    nearest_of_rows(z + n * dim, dim, min_of(kCodeRows, end - n), codes, squares, padded_codes,
                    index + n);
  }
}

}  // namespace
}  // namespace vgen::kernels
