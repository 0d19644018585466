#include "vgen/eval/pictures.h"

#include <algorithm>

#include "vgen/core/strings.h"

namespace vgen::eval {

std::string picture_name(int64_t index, const std::string& suffix) {
  const std::string digits = std::to_string(index);
  return str_cat(std::string(digits.size() < 6 ? 6 - digits.size() : 0, '0'), digits, suffix,
                 ".png");
}

bool is_picture_name(const std::string& name, const std::string& suffix) {
  const std::string end = suffix + ".png";
  if (!name.ends_with(end)) return false;
  const std::string stem = name.substr(0, name.size() - end.size());
  return stem.size() >= 6 && std::ranges::all_of(stem, [](char c) { return c >= '0' && c <= '9'; });
}

std::vector<std::byte> encode_png(const at::Tensor& image_HW3,
                                  const std::vector<data::PngText>& texts) {
  const at::Tensor pixels_HW3 = image_HW3.contiguous();
  data::Image image{.width = image_HW3.size(1), .height = image_HW3.size(0), .rgb = {}};
  const auto* pixels = pixels_HW3.const_data_ptr<uint8_t>();
  image.rgb.assign(pixels, pixels + pixels_HW3.numel());
  return data::encode_png(image, texts);
}

std::vector<std::byte> encode_drawn_png(const at::Tensor& image_HW3, const io::Json& parameters) {
  const std::string text = io::dump_json(parameters, /*indent=*/-1, /*is_ascii=*/true);
  return encode_png(image_HW3, {{"Software", "vgen"}, {"parameters", text}});
}

}  // namespace vgen::eval
