#include "vgen/data/transforms.h"

#include <torch/torch.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>

#include "data/data_support.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/core/strings.h"
#include "vgen/data/detail/resample_kernels.h"
#include "vgen/data/resample.h"
#include "vgen/io/npy.h"

namespace vgen::data {
namespace {

io::Array read_golden(const std::string& name) {
  return io::read_npy(test::golden("preprocess/" + name));
}

/// uint8 (H, W, 3)
Image golden_image(const std::string& name) {
  const io::Array array = read_golden(name);
  const auto bytes = array.as<uint8_t>();
  return {.width = array.shape[1], .height = array.shape[0], .rgb = {bytes.begin(), bytes.end()}};
}

torch::Tensor golden_tensor(const std::string& name) {
  const io::Array array = read_golden(name);
  const auto values = array.as<float>();
  return torch::tensor(std::vector<float>(values.begin(), values.end())).view(array.shape);
}

bool same(const Image& a, const Image& b) {
  return a.width == b.width && a.height == b.height && a.rgb == b.rgb;
}

/// LlamaGen's steps one after the other: halves by BOX as long as twice the target is there, then
/// BICUBIC to the target.
Image shorter_side_to(Image image, int64_t target) {
  while (std::min(image.width, image.height) >= 2 * target) {
    image = resize(image, image.width / 2, image.height / 2, Filter::kBox);
  }
  const double ratio =
      static_cast<double>(target) / static_cast<double>(std::min(image.width, image.height));
  return resize(image, std::lrint(static_cast<double>(image.width) * ratio),
                std::lrint(static_cast<double>(image.height) * ratio), Filter::kBicubic);
}

/// What a random crop draws: the shorter side, then the corner.
struct Draws {
  int64_t target = 0, y = 0, x = 0;
};

Draws draw(Rng rng, const Image& image, int64_t size, const RandomCrop& options) {
  Draws draws;
  draws.target =
      rng.between(static_cast<int64_t>(std::ceil(static_cast<double>(size) / options.max_frac)),
                  static_cast<int64_t>(std::ceil(static_cast<double>(size) / options.min_frac)));
  const Image resized = shorter_side_to(image, draws.target);
  draws.y = rng.between(0, resized.height - size);
  draws.x = rng.between(0, resized.width - size);
  return draws;
}

}  // namespace

TEST_CASE("transforms: the official crops of the golden images", "[data][golden]") {
  const int64_t sizes[] = {32, 48, 64};
  for (int i = 0; i < 3; ++i) {
    INFO("image " << i);
    const Image image = golden_image(str_cat("rgb_", i, ".npy"));
    const Image square = center_crop(image, sizes[i]);
    CHECK(same(square, golden_image(str_cat("center_crop_", i, ".npy"))));
    CHECK_THAT(
        to_tensor(square),
        test::AllClose(golden_tensor(str_cat("center_crop_tensor_", i, ".npy")), test::kExact));
    CHECK_THAT(to_tensor(var_center_crop(image, sizes[i])),
               test::AllClose(golden_tensor(str_cat("var_val_", i, ".npy")), test::kExact));
  }
}

TEST_CASE("transforms: a crop of a resized image is the same as cropping all of it", "[data]") {
  Rng rng(1, Purpose::kTest);
  for (int i = 0; i < 200; ++i) {
    const Image image =
        test::make_picture(rng.between(1, 70), rng.between(1, 70), static_cast<int>(i));
    const int64_t width = rng.between(1, 90), height = rng.between(1, 90);
    Rect rect{.width = rng.between(1, width), .height = rng.between(1, height)};
    rect.x = rng.between(0, width - rect.width);
    rect.y = rng.between(0, height - rect.height);
    const auto filter = static_cast<Filter>(rng.below(3));
    INFO(image.width << " x " << image.height << " to " << width << " x " << height);
    CHECK(same(resize_crop(image, width, height, filter, rect),
               crop(resize(image, width, height, filter), rect)));
  }
}

TEST_CASE("transforms: the kernels of every instruction set give the same bits", "[data]") {
  const auto& all = detail::supported_resample_kernels();
  REQUIRE(all.size() >= 1);
  Rng rng(2, Purpose::kTest);
  for (const int64_t count : {1, 5, 8, 15, 16, 17, 48, 63, 64, 65, 200}) {
    for (int64_t taps = 1; taps <= 9; ++taps) {
      const int64_t stride = count + 3;
      std::vector<uint8_t> in(static_cast<size_t>(taps * stride));
      for (auto& value : in) value = static_cast<uint8_t>(rng.below(256));
      std::vector<int32_t> weights;
      for (int64_t j = 0; j < taps; ++j) {
        weights.push_back(static_cast<int32_t>(rng.between(-8'000'000, 8'000'000) / taps));
      }
      std::vector<uint8_t> expected(static_cast<size_t>(count));
      all[0].weighted_sum(in.data(), stride, weights.data(), taps, expected.data(), count);
      for (const auto& kernels : all) {
        INFO(kernels.name << ", " << taps << " taps, " << count << " sums");
        std::vector<uint8_t> sums(static_cast<size_t>(count));
        kernels.weighted_sum(in.data(), stride, weights.data(), taps, sums.data(), count);
        CHECK(sums == expected);
      }
    }
  }
}

TEST_CASE("transforms: weights of the filters stay in the range of the kernels", "[data]") {
  // A white image stays white and a black one black, however small: the weights sum to one and
  // none of them is cut.
  for (const Filter filter : {Filter::kBox, Filter::kBicubic, Filter::kLanczos}) {
    for (int64_t from = 1; from <= 9; ++from) {
      for (int64_t to = 1; to <= 24; ++to) {
        const Image white{.width = from,
                          .height = from,
                          .rgb = Pixels(static_cast<size_t>(from * from * 3), 255)};
        const Image large = resize(white, to, to, filter);
        CHECK(std::all_of(large.rgb.begin(), large.rgb.end(), [](uint8_t v) { return v == 255; }));
      }
    }
  }
}

TEST_CASE("transforms: random crops stay inside and repeat with their seed", "[data]") {
  const Image image = test::make_picture(50, 37, 1);
  for (uint64_t i = 0; i < 100; ++i) {
    Rng first(7, Purpose::kAugment, 0, i), second(7, Purpose::kAugment, 0, i);
    const Image a = random_crop(image, 16, {}, first);
    CHECK(a.width == 16);
    CHECK(a.height == 16);
    CHECK(same(a, random_crop(image, 16, {}, second)));
    CHECK(same(var_random_crop(image, 16, first), var_random_crop(image, 16, second)));
  }
  Rng rng(7, Purpose::kAugment);
  CHECK_FALSE(same(random_crop(image, 16, {}, rng), random_crop(image, 16, {}, rng)));
}

TEST_CASE("transforms: the official random crops, given the same draws", "[data][golden]") {
  // What Python's random draws after random.seed(6000 + i), as the golden files were made.
  const Draws golden[] = {{34, 1, 5}, {53, 35, 5}, {69, 3, 4}};
  const int64_t sizes[] = {32, 48, 64};
  for (int i = 0; i < 3; ++i) {
    INFO("image " << i);
    const Image image = golden_image(str_cat("rgb_", i, ".npy"));
    const Image resized = shorter_side_to(image, golden[i].target);
    const auto draws_same = [&](Rng rng) {  // cheap: nearly all streams differ in the first number
      return rng.between(sizes[i], (5 * sizes[i] + 3) / 4) == golden[i].target &&
             rng.between(0, resized.height - sizes[i]) == golden[i].y &&
             rng.between(0, resized.width - sizes[i]) == golden[i].x;
    };
    uint64_t stream = 0;
    while (stream < 1'000'000 && !draws_same(Rng(0, Purpose::kTest, 0, stream))) ++stream;
    REQUIRE(stream < 1'000'000);
    Rng rng(0, Purpose::kTest, 0, stream);
    CHECK(same(random_crop(image, sizes[i], {}, rng),
               golden_image(str_cat("random_crop_", i, ".npy"))));
  }
}

TEST_CASE("transforms: a random crop is halving, resizing and cutting at what was drawn",
          "[data]") {
  const Image wide = test::make_picture(97, 61, 3), tall = test::make_picture(18, 40, 4);
  struct Case {
    RandomCrop options;
    int64_t least = 0, most = 0;  // of the shorter side, for a crop of 12
  };
  for (const auto& [options, least, most] :
       {Case{{}, 12, 15}, Case{{.min_frac = 0.7, .max_frac = 0.9}, 14, 18}}) {
    for (const Image& image : {wide, tall}) {
      int64_t smallest = most, largest = least;
      bool is_at_start = false, is_at_end = false;
      for (uint64_t i = 0; i < 300; ++i) {
        Rng rng(11, Purpose::kTest, 0, i);
        const Draws draws = draw(rng, image, 12, options);
        const Image resized = shorter_side_to(image, draws.target);
        INFO("stream " << i << ": " << draws.target << ", " << draws.y << ", " << draws.x);
        REQUIRE(
            same(random_crop(image, 12, options, rng), crop(resized, {draws.x, draws.y, 12, 12})));
        smallest = std::min(smallest, draws.target);
        largest = std::max(largest, draws.target);
        is_at_start |= draws.y == 0 && draws.x == 0;
        is_at_end |= draws.y == resized.height - 12 && draws.x == resized.width - 12;
      }
      CHECK(smallest == least);
      CHECK(largest == most);
      CHECK(is_at_start);
      CHECK(is_at_end);
    }
  }
}

TEST_CASE("transforms: a random crop that may only be the whole square is the centre crop",
          "[data]") {
  const Image image = test::make_picture(40, 40, 5);
  Rng rng(3, Purpose::kAugment);
  const RandomCrop whole{.min_frac = 1, .max_frac = 1};
  CHECK(same(random_crop(image, 24, whole, rng), center_crop(image, 24)));
}

TEST_CASE("transforms: extreme shapes take little memory", "[data]") {
  const Image line = test::make_picture(3000, 1, 1);  // would become 768000 x 256
  const Image square = center_crop(line, 256);
  CHECK(square.width == 256);
  Rng rng(3, Purpose::kAugment);
  CHECK(random_crop(test::make_picture(1, 3000, 1), 256, {}, rng).height == 256);
  CHECK(var_center_crop(test::make_picture(1, 1, 1), 8).width == 8);
}

TEST_CASE("transforms: ten crops in torchvision's order", "[data]") {
  const Image image = test::make_picture(7, 6, 2);
  const auto crops = ten_crop(image, 4);
  REQUIRE(crops.size() == 10);
  const Image mirrored = flip_horizontal(image);
  CHECK(same(crops[1], crop(image, {3, 0, 4, 4})));
  CHECK(same(crops[2], crop(image, {0, 2, 4, 4})));
  CHECK(same(crops[4], crop(image, {2, 1, 4, 4})));  // round(1.5) is 2
  CHECK(same(crops[5], crop(mirrored, {0, 0, 4, 4})));
  CHECK(same(crops[9], crop(mirrored, {2, 1, 4, 4})));
  CHECK_THAT(test::error_of([&] { ten_crop(image, 7); }),
             Catch::Contains("ten crops of 7 from an image of 7 x 6"));
}

TEST_CASE("transforms: bytes become [-1, 1]", "[data]") {
  const torch::Tensor tensor =
      to_tensor({.width = 2, .height = 1, .rgb = {0, 51, 255, 255, 0, 51}});
  const auto expected = torch::tensor({-1.0f, 1.0f, -0.6f, -1.0f, 1.0f, -0.6f}).view({3, 1, 2});
  CHECK_THAT(tensor, test::AllClose(expected, {1e-7, 0}));
}

TEST_CASE("transforms: impossible sizes are told", "[data]") {
  const Image image = test::make_picture(4, 4, 0);
  CHECK_THAT(test::error_of([&] { resize(image, 0, 4, Filter::kBox); }),
             Catch::Contains("resize from 4 x 4 to 0 x 4: every side must be at least 1"));
  CHECK_THAT(test::error_of([&] {
               crop(image, {1, 0, 4, 4});
             }),
             Catch::Contains("does not lie inside 4 x 4"));
  CHECK_THAT(test::error_of([&] { center_crop(image, 0); }), Catch::Contains("crop of 0"));
  Rng rng(0, Purpose::kTest);
  CHECK_THAT(
      test::error_of([&] { random_crop(image, 2, {.min_frac = 0.9, .max_frac = 0.5}, rng); }),
      Catch::Contains("0 < min_crop_frac <= max_crop_frac <= 1"));
}

}  // namespace vgen::data
