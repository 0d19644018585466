#pragma once
// Resizing with antialias, bit for bit equal to the Image.resize of Pillow 12 and before (its
// src/libImaging/Resample.c): horizontal pass first, its result rounded to 8 bits, then the
// vertical pass, weights in fixed point with 22 fractional bits. (Pillow 13 begins with the
// vertical pass for some tall images; the models were trained with the older order.) A crop of the
// result computes only what the crop needs. All functions may be called from any thread.

#include <cstdint>

#include "vgen/data/image.h"

namespace vgen::data {

enum class Filter {
  kBox,      ///< support 0.5
  kBicubic,  ///< support 2, a = -0.5
  kLanczos,  ///< support 3
};

/// A rectangle of pixels.
struct Rect {
  int64_t x = 0;
  int64_t y = 0;
  int64_t width = 0;
  int64_t height = 0;
};

/// The whole image at width x height. Throws Error(kInvalidArgument) for an empty image or size.
Image resize(const Image& image, int64_t width, int64_t height, Filter filter);

/// crop(resize(image, width, height, filter), rect) without computing the rest. `rect` must lie
/// inside width x height.
Image resize_crop(const Image& image, int64_t width, int64_t height, Filter filter,
                  const Rect& rect);

/// Copies a rectangle, which must lie inside the image.
Image crop(const Image& image, const Rect& rect);

/// Mirrors left and right.
Image flip_horizontal(const Image& image);

}  // namespace vgen::data
