#pragma once
// Small pictures as files. For tests that link vgen::data.

#include <filesystem>
#include <string>

#include "support/support.h"
#include "vgen/core/random.h"
#include "vgen/data/image.h"

namespace vgen::test {

/// Noise of its own for each `index`.
inline data::Image noise_picture(int64_t width, int64_t height, int64_t index) {
  data::Image image{.width = width,
                    .height = height,
                    .rgb = data::Pixels(static_cast<size_t>(3 * width * height))};
  Rng rng(1, Purpose::kTest, 0, static_cast<uint64_t>(index));
  for (auto& value : image.rgb) value = static_cast<uint8_t>(rng.below(256));
  return image;
}

/// As a PNG; its folders are made.
inline void write_picture(const std::string& path, const data::Image& image) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  const auto png = data::encode_png(image);
  write_file(path, {reinterpret_cast<const char*>(png.data()), png.size()});
}

}  // namespace vgen::test
