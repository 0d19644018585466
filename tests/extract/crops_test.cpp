#include "vgen/extract/crops.h"

#include <catch2/catch.hpp>

#include "support/support.h"
#include "vgen/core/error.h"
#include "vgen/data/resample.h"
#include "vgen/data/transforms.h"
#include "vgen/io/npy.h"

using namespace vgen;

namespace {

data::Image read_image(const std::string& name) {
  const io::Array array = io::read_npy(test::golden(name));
  const auto pixels = array.as<uint8_t>();
  return {.width = array.shape[1],
          .height = array.shape[0],
          .rgb = data::Pixels(pixels.begin(), pixels.end())};
}

}  // namespace

TEST_CASE("crops: torchvision's TenCrop after the official centre crop", "[extract][golden]") {
  for (const std::string i : {"0", "1"}) {
    const data::Image image = read_image("ten_crop/rgb_" + i + ".npy");
    for (const auto& [size, range] :
         std::vector<std::pair<int64_t, std::string>>{{16, "1.1"}, {16, "1.05"}, {20, "1.3"}}) {
      CAPTURE(i, size, range);
      const auto crops =
          extract::make_crops(image, size, {codes::parse_crop_set("ten_crop:" + range)});
      const io::Array expected =
          io::read_npy(test::golden(str_cat("ten_crop/crops_", i, "_", size, "_", range, ".npy")));
      REQUIRE(expected.shape == std::vector<int64_t>{10, size, size, 3});
      std::vector<uint8_t> pixels;
      for (const auto& crop : crops) pixels.insert(pixels.end(), crop.rgb.begin(), crop.rgb.end());
      const auto wanted = expected.as<uint8_t>();
      CHECK((pixels == std::vector<uint8_t>(wanted.begin(), wanted.end())));
    }
  }
}

TEST_CASE("crops: five crops are the first half of ten", "[extract]") {
  const data::Image image = read_image("ten_crop/rgb_1.npy");
  const auto ten = extract::make_crops(image, 20, {codes::parse_crop_set("ten_crop:1.3")});
  const auto five = extract::make_crops(image, 20, {codes::parse_crop_set("five_crop:1.3")});
  REQUIRE(five.size() == 5);
  for (size_t i = 0; i < five.size(); ++i) CHECK(five[i].rgb == ten[i].rgb);
}

TEST_CASE("crops: sets follow one another", "[extract]") {
  const data::Image image = read_image("ten_crop/rgb_0.npy");
  const auto crops = extract::make_crops(
      image, 16,
      {codes::parse_crop_set("center_flip"), codes::parse_crop_set("ten_crop:1.05"),
       codes::parse_crop_set("center")});
  REQUIRE(crops.size() == 13);
  const data::Image center = data::center_crop(image, 16);
  CHECK(crops[0].rgb == center.rgb);
  CHECK(crops[1].rgb == data::flip_horizontal(center).rgb);
  CHECK(crops[12].rgb == center.rgb);
  CHECK(crops[6].rgb == center.rgb);  // 16 * 1.05 is cut to 16: nothing is left to choose
}
