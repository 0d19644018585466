#pragma once
// PNG through libpng, to the pixels of PIL.

#include <cstddef>
#include <span>

#include "vgen/data/image.h"

namespace vgen::data::detail {

/// The header was looked at: probe_image and check_pixels. Throws Error(kDataCorrupt): truncated or
/// damaged. Warnings of libpng (odd colour profiles) say nothing about the pixels and are dropped.
Image decode_png(std::span<const std::byte> file);

}  // namespace vgen::data::detail
