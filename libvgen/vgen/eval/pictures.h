#pragma once
// Pictures as results: their names and their PNGs.

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "vgen/data/image.h"
#include "vgen/io/json.h"

namespace vgen::eval {

/// "000007.png", with a suffix "000007_scales.png".
std::string picture_name(int64_t index, const std::string& suffix = "");

/// Whether picture_name(index, suffix) of some index is `name`.
bool is_picture_name(const std::string& name, const std::string& suffix = "");

/// image_HW3: uint8, on the CPU.
std::vector<std::byte> encode_png(const at::Tensor& image_HW3,
                                  const std::vector<data::PngText>& texts = {});

/// The same, with how it was drawn in the text chunk `parameters`: JSON in ASCII, since the chunk
/// is Latin-1.
std::vector<std::byte> encode_drawn_png(const at::Tensor& image_HW3, const io::Json& parameters);

}  // namespace vgen::eval
