// Pictures of a tokenizer of several scales, coarse to fine: scales.png of `vgen reconstruct` and
// the _scales.png of `vgen sample --show-scales`. K scales of S pixels, two white pixels around
// each.

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "eval/picture_support.h"
#include "support/golden.h"
#include "support/support.h"
#include "vgen/checkpoint/named_tensors.h"
#include "vgen/core/strings.h"
#include "vgen/eval/reconstruct.h"
#include "vgen/eval/sample.h"
#include "vgen/io/npy.h"
#include "vgen/tensor/image.h"

using namespace vgen;
using test::golden;
using test::read_picture;

namespace {

constexpr int64_t kScales = 4, kSide = 8, kGap = 2;

infer::LoadedTokenizer golden_tokenizer() {
  return infer::load_tokenizer(golden("var_vae/vae.pth"),
                               {.patch_nums = {1, 2, 3, 4}, .device = "cpu"});
}

int64_t extent(int64_t tiles) { return tiles * (kSide + kGap) + kGap; }

torch::Tensor tile(const torch::Tensor& grid_HW3, int64_t row, int64_t column) {
  return grid_HW3.narrow(0, kGap + row * (kSide + kGap), kSide)
      .narrow(1, kGap + column * (kSide + kGap), kSide);
}

torch::Tensor read_codes(const std::string& path) {
  return checkpoint::as_tensor(io::read_npy(path)).clone();
}

}  // namespace

TEST_CASE("reconstruct: scales.png has a row per image, its scales and the image", "[eval]") {
  const test::TempDir dir;
  const auto original_BHW3 = to_uint8(test::golden_tensor("var_vae/images.npy"));
  const int64_t count = original_BHW3.size(0);
  for (int64_t i = 0; i < count; ++i) {
    data::Image image{.width = kSide, .height = kSide, .rgb = {}};
    const auto pixels = original_BHW3[i].contiguous();
    const auto* begin = pixels.const_data_ptr<uint8_t>();
    image.rgb.assign(begin, begin + pixels.numel());
    test::write_picture(dir / str_cat(i, ".png"), image);
  }
  const std::string yaml = dir / "vae.yaml";
  test::write_file(yaml, golden_tokenizer().model->config_yaml());
  eval::ReconstructConfig config;
  config.model = golden("var_vae/vae.pth");
  for (int64_t i = 0; i < count; ++i) config.inputs.push_back(dir / str_cat(i, ".png"));
  config.tokenizer = {.config = yaml, .device = "cpu"};
  config.batch_size = count;
  config.out = dir / "out";
  eval::reconstruct(config);

  const auto grid_HW3 = read_picture(dir / "out/scales.png");
  REQUIRE(grid_HW3.sizes() == torch::IntArrayRef({extent(count), extent(kScales + 1), 3}));
  const auto scales = golden_tokenizer().model->decode_scales(read_codes(dir / "out/codes.npy"));
  REQUIRE(scales.size() == kScales);
  for (int64_t i = 0; i < count; ++i) {
    INFO("image " << i);
    for (int64_t k = 0; k < kScales; ++k) {
      INFO("scale " << k);
      CHECK(torch::equal(tile(grid_HW3, i, k), to_uint8(scales[static_cast<size_t>(k)])[i]));
    }
    CHECK(torch::equal(tile(grid_HW3, i, kScales - 1),
                       read_picture(dir / str_cat("out/00000", i, ".png"))));
    CHECK(torch::equal(tile(grid_HW3, i, kScales), original_BHW3[i]));
    CHECK_FALSE(torch::equal(tile(grid_HW3, i, 0), tile(grid_HW3, i, kScales - 1)));
  }
}

TEST_CASE("sample: with show_scales each image after every scale, the last one as it is",
          "[eval]") {
  const test::TempDir dir;
  eval::SampleImagesConfig config;
  config.model.checkpoint = golden("var/var.pth");
  config.model.tokenizer = golden("var_vae/vae.pth");
  config.model.precision = "fp32";
  config.model.device = "cpu";
  config.classes = "3,7";
  config.show_scales = true;
  config.out = dir / "out";
  eval::sample_images(config);

  const auto scales = golden_tokenizer().model->decode_scales(read_codes(dir / "out/codes.npy"));
  REQUIRE(scales.size() == kScales);
  for (int64_t i = 0; i < 2; ++i) {
    INFO("image " << i);
    const auto row_HW3 = read_picture(dir / str_cat("out/00000", i, "_scales.png"));
    REQUIRE(row_HW3.sizes() == torch::IntArrayRef({extent(1), extent(kScales), 3}));
    for (int64_t k = 0; k < kScales; ++k) {
      INFO("scale " << k);
      CHECK(torch::equal(tile(row_HW3, 0, k), to_uint8(scales[static_cast<size_t>(k)])[i]));
    }
    CHECK(torch::equal(tile(row_HW3, 0, kScales - 1),
                       read_picture(dir / str_cat("out/00000", i, ".png"))));
  }
}
