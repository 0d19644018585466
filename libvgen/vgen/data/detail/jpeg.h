#pragma once
// JPEG through libjpeg-turbo, with the settings and the CMYK formula of PIL.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "vgen/data/image.h"

namespace vgen::data::detail {

/// Throws Error(kDataCorrupt): damaged header, truncated, too many pixels or scans. `needed_side` >
/// 0: see decode_image.
Image decode_jpeg(std::span<const std::byte> file, int64_t max_pixels, int64_t needed_side);

std::vector<std::byte> encode_jpeg(const Image& image, int quality);

/// Throws Error(kDataCorrupt) unless 1 <= width * height <= max_pixels.
void check_pixels(int64_t width, int64_t height, int64_t max_pixels);

}  // namespace vgen::data::detail
