// `vgen edit` with pixels pasted back: outside of what is drawn anew the picture is the image's
// own.

#include "vgen/eval/edit.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "eval/picture_support.h"
#include "support/support.h"

using namespace vgen;
using test::golden;
using test::read_picture;

namespace {

/// An image of 16 x 12 pixels and the middle of it at `side` pixels, (side, side, 3).
struct Original {
  Original(const test::TempDir& dir, int64_t side) : path(dir / "image.png") {
    data::Image image{.width = 16, .height = 12, .rgb = data::Pixels(16 * 12 * 3)};
    for (size_t i = 0; i < image.rgb.size(); ++i) {
      image.rgb[i] = static_cast<uint8_t>(i * 37 % 251);
    }
    test::write_picture(path, image);
    crop_SS3 = test::as_tensor(data::center_crop(image, side));
  }
  std::string path;
  torch::Tensor crop_SS3;
};

eval::EditConfig var_config(const std::string& image, const std::string& out) {
  eval::EditConfig config;
  config.model.checkpoint = golden("var/var.pth");
  config.model.tokenizer = golden("var_vae/vae.pth");
  config.model.precision = "fp32";
  config.model.device = "cpu";
  config.image = image;
  config.out = out;
  config.count = 2;
  config.keep_original = true;
  return config;
}

/// Every drawing is the original where is_drawn_SS is false, and not all of it elsewhere.
void check_drawings(const std::string& out, const torch::Tensor& crop_SS3,
                    const torch::Tensor& is_drawn_SS) {
  REQUIRE(is_drawn_SS.any().item<bool>());
  REQUIRE_FALSE(is_drawn_SS.all().item<bool>());
  for (const char* name : {"/000000.png", "/000001.png"}) {
    INFO(name);
    const torch::Tensor drawn_SS3 = read_picture(out + name);
    REQUIRE(drawn_SS3.sizes() == crop_SS3.sizes());
    const torch::Tensor is_same_SS = drawn_SS3.eq(crop_SS3).all(-1);
    CHECK(is_same_SS.logical_or(is_drawn_SS).all().item<bool>());
    CHECK_FALSE(is_same_SS.masked_select(is_drawn_SS).all().item<bool>());
  }
}

}  // namespace

TEST_CASE("edit: pixels outside of the box are the image's own", "[eval]") {
  const test::TempDir dir;
  const Original original(dir, 8);
  auto config = var_config(original.path, dir / "out");
  config.box = "0.25,0.25,0.75,1";
  eval::edit_image(config);
  auto is_drawn_SS = torch::zeros({8, 8}, torch::kBool);
  is_drawn_SS.slice(0, 2, 6).slice(1, 2, 8).fill_(true);
  check_drawings(dir / "out", original.crop_SS3, is_drawn_SS);

  // The same box the other way round.
  config.task = "outpaint";
  config.out = dir / "outside";
  eval::edit_image(config);
  check_drawings(dir / "outside", original.crop_SS3, is_drawn_SS.logical_not());

  // Without --keep-original what stays is only as good as its codes.
  config.keep_original = false;
  config.out = dir / "codes";
  eval::edit_image(config);
  const auto drawn_SS3 = read_picture(dir / "codes/000000.png");
  CHECK_FALSE(torch::equal(drawn_SS3.slice(0, 2, 6).slice(1, 2, 8),
                           original.crop_SS3.slice(0, 2, 6).slice(1, 2, 8)));
}

TEST_CASE("edit: pixels where the mask is dark are the image's own", "[eval]") {
  const test::TempDir dir;
  const Original original(dir, 8);
  // Bright in the lower half of the image, which is the lower half of its middle.
  data::Image mask{.width = 16, .height = 12, .rgb = data::Pixels(16 * 12 * 3)};
  std::fill(mask.rgb.begin(), mask.rgb.end(), uint8_t{0});
  std::fill(mask.rgb.begin() + 16 * 6 * 3, mask.rgb.end(), uint8_t{255});
  test::write_picture(dir / "mask.png", mask);
  auto config = var_config(original.path, dir / "out");
  config.mask = dir / "mask.png";
  eval::edit_image(config);
  auto is_drawn_SS = torch::zeros({8, 8}, torch::kBool);
  is_drawn_SS.slice(0, 4).fill_(true);
  check_drawings(dir / "out", original.crop_SS3, is_drawn_SS);
}

TEST_CASE("edit: a completion keeps the rows above as they are", "[eval]") {
  const test::TempDir dir;
  const Original original(dir, 96);
  auto config = var_config(original.path, dir / "out");
  config.model.checkpoint = golden("gpt_c2i/ckpt.safetensors");
  config.model.gpt.n_head = 2;
  config.model.tokenizer = golden("vq16/ckpt.safetensors");
  config.model.image_size = 96;
  config.task = "complete";
  config.label = 3;
  config.kept_rows = 0.5;
  eval::edit_image(config);
  auto is_drawn_SS = torch::zeros({96, 96}, torch::kBool);
  is_drawn_SS.slice(0, 48).fill_(true);
  check_drawings(dir / "out", original.crop_SS3, is_drawn_SS);
}
