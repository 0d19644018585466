#include "vgen/data/transforms.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "vgen/core/error.h"
#include "vgen/data/resample.h"

namespace vgen::data {
namespace {

/// Half to even, as Python's round().
int64_t round_even(double value) { return static_cast<int64_t>(std::nearbyint(value)); }

void check_square(const Image& image, int64_t size) {
  require(size >= 1 && image.width >= 1 && image.height >= 1, ErrorCode::kInvalidArgument,
          "crop of ", size, " from an image of ", image.width, " x ", image.height,
          ": every side must be at least 1");
}

/// Where the image ends up before the crop: `image`, halved as often as the rule says, becomes
/// width x height.
struct Plan {
  Image halved;  ///< empty: the image itself
  int64_t width = 0;
  int64_t height = 0;
};

/// LlamaGen's two steps to a shorter side of `target`.
Plan plan_shorter_side(const Image& image, int64_t target) {
  Plan plan;
  const Image* current = &image;
  while (std::min(current->width, current->height) >= 2 * target) {
    plan.halved = resize(*current, current->width / 2, current->height / 2, Filter::kBox);
    current = &plan.halved;
  }
  const double ratio =
      static_cast<double>(target) / static_cast<double>(std::min(current->width, current->height));
  plan.width = round_even(static_cast<double>(current->width) * ratio);
  plan.height = round_even(static_cast<double>(current->height) * ratio);
  return plan;
}

Image cut(const Image& image, const Plan& plan, const Rect& rect) {
  const Image& source = plan.halved.rgb.empty() ? image : plan.halved;
  return resize_crop(source, plan.width, plan.height, Filter::kBicubic, rect);
}

/// torchvision's Resize(mid) of VAR: the longer side is truncated.
std::pair<int64_t, int64_t> var_size(const Image& image, int64_t size) {
  const int64_t mid = round_even(1.125 * static_cast<double>(size));
  const int64_t shorter = std::min(image.width, image.height);
  const int64_t longer = std::max(image.width, image.height);
  const auto scaled =
      static_cast<int64_t>(static_cast<double>(mid * longer) / static_cast<double>(shorter));
  return image.width <= image.height ? std::pair{mid, scaled} : std::pair{scaled, mid};
}

/// Value of each byte, by the operations of ToTensor and Normalize in float32.
std::array<float, 256> float_of_byte() {
  std::array<float, 256> table{};
  for (int v = 0; v < 256; ++v) table[v] = (static_cast<float>(v) / 255.0f - 0.5f) / 0.5f;
  return table;
}

}  // namespace

Image center_crop(const Image& image, int64_t size) {
  check_square(image, size);
  const Plan plan = plan_shorter_side(image, size);
  return cut(image, plan, {(plan.width - size) / 2, (plan.height - size) / 2, size, size});
}

Image random_crop(const Image& image, int64_t size, const RandomCrop& options, Rng& rng) {
  check_square(image, size);
  require(options.min_frac > 0 && options.min_frac <= options.max_frac && options.max_frac <= 1,
          ErrorCode::kInvalidArgument, "random crop between ", options.min_frac, " and ",
          options.max_frac,
          " of the shorter side: expected 0 < min_crop_frac <= max_crop_frac <= 1");
  const auto smallest = std::ceil(static_cast<double>(size) / options.max_frac);
  const auto largest = std::ceil(static_cast<double>(size) / options.min_frac);
  const int64_t target = rng.between(static_cast<int64_t>(smallest), static_cast<int64_t>(largest));
  const Plan plan = plan_shorter_side(image, target);
  const int64_t y = rng.between(0, plan.height - size);
  const int64_t x = rng.between(0, plan.width - size);
  return cut(image, plan, {x, y, size, size});
}

Image var_random_crop(const Image& image, int64_t size, Rng& rng) {
  check_square(image, size);
  const auto [width, height] = var_size(image, size);
  const int64_t y = rng.between(0, height - size);
  const int64_t x = rng.between(0, width - size);
  return resize_crop(image, width, height, Filter::kLanczos, {x, y, size, size});
}

Image var_center_crop(const Image& image, int64_t size) {
  check_square(image, size);
  const auto [width, height] = var_size(image, size);
  const int64_t y = round_even(static_cast<double>(height - size) / 2);
  const int64_t x = round_even(static_cast<double>(width - size) / 2);
  return resize_crop(image, width, height, Filter::kLanczos, {x, y, size, size});
}

std::vector<Image> ten_crop(const Image& image, int64_t size) {
  require(size >= 1 && image.width >= size && image.height >= size, ErrorCode::kInvalidArgument,
          "ten crops of ", size, " from an image of ", image.width, " x ", image.height,
          ": both sides must be at least the crop");
  const int64_t right = image.width - size, bottom = image.height - size;
  const std::array<std::pair<int64_t, int64_t>, 5> places = {
      {{0, 0},
       {right, 0},
       {0, bottom},
       {right, bottom},
       {round_even(static_cast<double>(right) / 2), round_even(static_cast<double>(bottom) / 2)}}};
  const Image mirrored = flip_horizontal(image);
  std::vector<Image> crops;
  for (const Image* from : {&image, &mirrored}) {
    for (const auto& [x, y] : places) crops.push_back(crop(*from, {x, y, size, size}));
  }
  return crops;
}

void to_float(const Image& image, std::span<float> out) {
  require(out.size() == image.rgb.size(), ErrorCode::kInternal, "to_float: ", image.rgb.size(),
          " values into room for ", out.size());
  static const std::array<float, 256> kTable = float_of_byte();
  const int64_t plane = image.width * image.height;
  float* red = out.data();
  float* green = red + plane;
  float* blue = green + plane;
  const uint8_t* rgb = image.rgb.data();
  for (int64_t i = 0; i < plane; ++i, rgb += 3) {
    red[i] = kTable[rgb[0]];
    green[i] = kTable[rgb[1]];
    blue[i] = kTable[rgb[2]];
  }
}

at::Tensor to_tensor(const Image& image) {
  at::Tensor out = at::empty({3, image.height, image.width}, at::kFloat);
  to_float(image, {out.data_ptr<float>(), static_cast<size_t>(out.numel())});
  return out;
}

}  // namespace vgen::data
