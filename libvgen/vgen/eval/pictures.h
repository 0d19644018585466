#pragma once
// Pictures as results: their names and their PNGs.

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "vgen/data/image.h"

namespace vgen::eval {

/// "000007.png", with a suffix "000007_scales.png".
std::string picture_name(int64_t index, const std::string& suffix = "");

/// Whether picture_name(index, suffix) of some index is `name`.
bool is_picture_name(const std::string& name, const std::string& suffix = "");

/// image_HW3: uint8, on the CPU.
std::vector<std::byte> encode_png(const at::Tensor& image_HW3,
                                  const std::vector<data::PngText>& texts = {});

}  // namespace vgen::eval
