#pragma once
// Pictures as files and as tensors.

#include <torch/torch.h>

#include <span>
#include <string>

#include "support/support.h"
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

/// PNG.
inline void write_picture(const std::string& path, const data::Image& image) {
  const auto png = data::encode_png(image);
  write_file(path, {reinterpret_cast<const char*>(png.data()), png.size()});
}

}  // namespace vgen::test
