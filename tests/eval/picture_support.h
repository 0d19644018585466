#pragma once
// Pictures as tensors, besides those of support/pictures.h.

#include <torch/torch.h>

#include <span>
#include <string>

#include "support/pictures.h"
#include "vgen/data/image.h"
#include "vgen/data/transforms.h"

namespace vgen::test {

/// uint8 (H, W, 3).
inline torch::Tensor as_tensor(const data::Image& image) {
  return torch::tensor(at::ArrayRef<uint8_t>(image.rgb.data(), image.rgb.size()))
      .view({image.height, image.width, 3});
}

inline torch::Tensor read_picture(const std::string& path) {
  const std::string bytes = read_file(path);
  return as_tensor(data::decode_image(std::as_bytes(std::span(bytes))));
}

}  // namespace vgen::test
