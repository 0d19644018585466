#pragma once
// From a decoded image to the square that a model takes. Sources: LlamaGen dataset/augmentation.py
// (center_crop_arr, random_crop_arr), VAR utils/data.py (build_dataset). Sizes are in pixels.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "vgen/core/random.h"
#include "vgen/data/image.h"

namespace vgen::data {

/// LlamaGen's centre crop: BOX-halve while the shorter side is at least twice `size`, BICUBIC so
/// that it becomes `size`, cut the middle. Smaller images are enlarged. (size, size)
Image center_crop(const Image& image, int64_t size);

/// LlamaGen's random crop: the shorter side is first resized to a uniform integer in
/// [ceil(size / max_frac), ceil(size / min_frac)], then a uniform place is cut.
struct RandomCrop {
  double min_frac = 0.8;  ///< share of the shorter side that the crop covers at least, in (0, 1]
  double max_frac = 1.0;  ///< and at most, in [min_frac, 1]
};
Image random_crop(const Image& image, int64_t size, const RandomCrop& options, Rng& rng);

/// VAR: shorter side to round(1.125 * size) with LANCZOS, then a uniform place (training) or the
/// middle (validation) is cut.
Image var_random_crop(const Image& image, int64_t size, Rng& rng);
Image var_center_crop(const Image& image, int64_t size);

/// torchvision's TenCrop, for the extraction of codes: the corners (top left, top right, bottom
/// left, bottom right) and the centre, then the same five places of the mirrored image.
std::vector<Image> ten_crop(const Image& image, int64_t size);

/// [0, 255] to [-1, 1]: (v / 255 - 0.5) / 0.5 in float32, rows of `image` to planes.
/// `out`: 3 * height * width floats, (3, H, W).
void to_float(const Image& image, std::span<float> out);

/// The same as a float32 tensor (3, H, W).
at::Tensor to_tensor(const Image& image);

}  // namespace vgen::data
