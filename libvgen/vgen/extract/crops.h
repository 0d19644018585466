#pragma once
// The squares that an image becomes before it is encoded. Sources: LlamaGen extract_codes_c2i.py,
// dataset/augmentation.py (center_crop_arr), torchvision's TenCrop.

#include <vector>

#include "vgen/codes/code_info.h"
#include "vgen/data/image.h"

namespace vgen::extract {

/// All crops of all sets, in the order that codes::CropSet tells, each (size, size). Equal to the
/// official pixels. May be called from any thread.
std::vector<data::Image> make_crops(const data::Image& image, int64_t size,
                                    const std::vector<codes::CropSet>& sets);

}  // namespace vgen::extract
