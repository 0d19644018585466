// `vgen edit` with pixels pasted back: outside of what is drawn anew the picture is the image's
// own.

#include "vgen/eval/edit.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <functional>

#include "eval/picture_support.h"
#include "support/support.h"
#include "vgen/io/json.h"
#include "vgen/tensor/image.h"

using namespace vgen;
using Catch::Matchers::Contains;
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
    const data::Image crop = data::center_crop(image, side);
    crop_SS3 = test::as_tensor(crop);
    crop_3SS = data::to_tensor(crop);
  }
  std::string path;
  torch::Tensor crop_SS3;  // uint8
  torch::Tensor crop_3SS;  // float32 in [-1, 1]
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

TEST_CASE("edit: a canvas grows around the shrunken image", "[eval]") {
  const test::TempDir dir;
  const Original original(dir, 8);
  auto config = var_config(original.path, dir / "out");
  config.task = "outpaint";
  config.box = "0.25,0.125,0.75,0.875";
  config.must_extend = true;
  eval::edit_image(config);

  // Rows 2 to 5 and columns 1 to 6 are the image, its border goes on around it.
  const auto small_SS3 = to_uint8(torch::nn::functional::interpolate(
      original.crop_3SS.unsqueeze(0), torch::nn::functional::InterpolateFuncOptions()
                                          .size(std::vector<int64_t>{4, 6})
                                          .mode(torch::kBicubic)
                                          .align_corners(false)
                                          .antialias(true)))[0];
  const auto row_S = torch::arange(8).sub(2).clamp(0, 3);
  const auto column_S = torch::arange(8).sub(1).clamp(0, 5);
  const auto extended_SS3 = small_SS3.index_select(0, row_S).index_select(1, column_S);
  auto is_drawn_SS = torch::ones({8, 8}, torch::kBool);
  is_drawn_SS.slice(0, 2, 6).slice(1, 1, 7).fill_(false);
  check_drawings(dir / "out", extended_SS3, is_drawn_SS);

  // The first two pictures of the grid, two white pixels around each.
  const auto grid_HW3 = read_picture(dir / "out/grid.png");
  const auto tile = [&](int64_t column) {
    return grid_HW3.narrow(0, 2, 8).narrow(1, 2 + column * 10, 8);
  };
  CHECK(torch::equal(tile(0), extended_SS3));
  const auto grey = torch::full({}, 128, torch::kByte);
  CHECK(torch::equal(tile(1), torch::where(is_drawn_SS.unsqueeze(2), grey, extended_SS3)));
}

TEST_CASE("edit: the class decides what is drawn, the seed which drawing", "[eval]") {
  const test::TempDir dir;
  const Original original(dir, 8);
  const auto draw = [&](const std::string& name, int64_t label, uint64_t seed) {
    auto config = var_config(original.path, dir / name);
    config.box = "0.25,0.25,0.75,1";
    config.label = label;
    config.model.settings.seed = seed;
    eval::edit_image(config);
    CHECK(io::parse_json(test::read_file(dir / name + "/edit.json")).get_int("class_id") == label);
    return read_picture(dir / name + "/000000.png");
  };
  const auto none_SS3 = draw("none", -1, 5), three_SS3 = draw("three", 3, 5);
  auto is_drawn_SS = torch::zeros({8, 8}, torch::kBool);
  is_drawn_SS.slice(0, 2, 6).slice(1, 2, 8).fill_(true);
  const auto is_same_SS = three_SS3.eq(none_SS3).all(-1);
  CHECK(is_same_SS.logical_or(is_drawn_SS).all().item<bool>());
  CHECK_FALSE(is_same_SS.all().item<bool>());

  draw("again", 3, 5);
  REQUIRE(test::files_in(dir / "again") == test::files_in(dir / "three"));
  for (const std::string& name : test::files_in(dir / "again")) {
    INFO(name);
    CHECK(test::read_file(dir / "again/" + name) == test::read_file(dir / "three/" + name));
  }
  CHECK_FALSE(torch::equal(draw("other", 3, 6), three_SS3));
}

TEST_CASE("edit: the settings that shape a drawing are recorded", "[eval]") {
  const test::TempDir dir;
  const Original original(dir, 8);
  const auto record = [&](const eval::EditConfig& config) {
    eval::edit_image(config);
    return io::parse_json(test::read_file(config.out + "/edit.json"));
  };
  const auto is_set = [](const io::Json& json, const char* key) {
    const io::Json* value = json.find(key);
    REQUIRE(value != nullptr);
    return io::dump_json(*value);
  };
  auto config = var_config(original.path, dir / "within");
  config.box = "0.25,0.25,0.75,0.75";
  config.task = "outpaint";
  config.model.batch_size = 3;
  config.model.settings.more_smooth = true;
  const io::Json within = record(config);
  CHECK(is_set(within, "extend") == "false");
  CHECK(within.find("keep_rows") == nullptr);
  CHECK(within.find("mask") == nullptr);

  config.out = dir / "wider";
  config.must_extend = true;
  config.keep_original = false;
  const io::Json wider = record(config);
  CHECK(is_set(wider, "extend") == "true");
  CHECK(is_set(wider, "task") == "\"outpaint\"");
  CHECK(is_set(wider, "box") == "\"0.25,0.25,0.75,0.75\"");
  CHECK(is_set(wider, "image_size") == "8");
  CHECK(is_set(wider, "device") == "\"cpu\"");
  CHECK(is_set(wider, "batch_size") == "3");
  CHECK(is_set(wider, "more_smooth") == "true");
  CHECK(is_set(wider, "top_k") == "900");
  CHECK(is_set(wider, "keep_original") == "false");

  auto below = var_config(original.path, dir / "below");
  below.model.checkpoint = golden("gpt_c2i/ckpt.safetensors");
  below.model.gpt.n_head = 2;
  below.model.tokenizer = golden("vq16/ckpt.safetensors");
  below.model.image_size = 96;
  below.task = "complete";
  below.label = 3;
  below.kept_rows = 0.4;  // 2 of 6 rows of codes
  const io::Json rows = record(below);
  CHECK(is_set(rows, "keep_rows") == "0.4");
  CHECK(rows.get_float("kept_share") == Approx(2.0 / 6));
  CHECK(rows.find("extend") == nullptr);
}

TEST_CASE("edit: what cannot be edited is told in one line, and nothing is written", "[eval]") {
  const test::TempDir dir;
  const Original original(dir, 8);
  const auto error = [&](const std::function<void(eval::EditConfig&)>& change) {
    auto config = var_config(original.path, dir / "out");
    config.box = "0.25,0.25,0.75,0.75";
    change(config);
    const std::string message = test::error_of([&] { eval::edit_image(config); });
    CHECK_FALSE(std::filesystem::exists(dir / "out"));
    return message;
  };
  CHECK_THAT(error([&](auto& c) { c.image = dir / "gone.png"; }),
             Contains("gone.png: no such file"));
  test::write_file(dir / "text.png", "no picture");
  CHECK_THAT(error([&](auto& c) { c.image = dir / "text.png"; }), Contains("text.png: "));
  CHECK_THAT(error([](auto& c) { c.label = -2; }),
             Contains("class -2: expected 0 to 9, or -1 for none"));
  const auto outpaint = [](const std::string& box) {
    return [box](eval::EditConfig& c) {
      c.task = "outpaint";
      c.box = box;
    };
  };
  for (const std::string box : {"0,0,1,1", "0.01,0,1,0.99"}) {
    INFO(box);
    CHECK_THAT(error(outpaint(box)),
               Contains("the box: nothing is to be drawn anew; at the size of a code, 2 pixels, it "
                        "covers the whole image, which stays; give a smaller one"));
  }
  CHECK_THAT(error(outpaint("0,0,0.01,0.01")), Contains("nothing of the image stays"));
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
