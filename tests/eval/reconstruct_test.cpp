// What `vgen reconstruct` measures and writes, against the model called by hand.

#include "vgen/eval/reconstruct.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>

#include "eval/picture_support.h"
#include "support/golden.h"
#include "support/pictures.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/checkpoint/named_tensors.h"
#include "vgen/data/image.h"
#include "vgen/data/transforms.h"
#include "vgen/eval/image_metrics.h"
#include "vgen/eval/load_lpips.h"
#include "vgen/io/npy.h"
#include "vgen/tensor/image.h"

using namespace vgen;
using Catch::Matchers::Contains;
using test::AllClose;
using test::golden;
using test::golden_tensor;
namespace fs = std::filesystem;

namespace {

data::Image to_image(const torch::Tensor& pixels_HW3) {
  data::Image image{.width = pixels_HW3.size(1), .height = pixels_HW3.size(0), .rgb = {}};
  const auto* begin = pixels_HW3.const_data_ptr<uint8_t>();
  image.rgb.assign(begin, begin + pixels_HW3.numel());
  return image;
}

/// The golden's images as PNG files a.png, b.png; returns what a model gets of them.
torch::Tensor write_images(const std::string& folder, const std::string& golden_images) {
  const torch::Tensor pixels_BHW3 = to_uint8(golden_tensor(golden_images));
  std::vector<torch::Tensor> images;
  for (int64_t i = 0; i < pixels_BHW3.size(0); ++i) {
    const data::Image image = to_image(pixels_BHW3[i]);
    test::write_picture(str_cat(folder, "/", std::string(1, static_cast<char>('a' + i)), ".png"),
                        image);
    images.push_back(data::to_tensor(image));
  }
  return torch::stack(images);
}

std::vector<io::Json> read_lines(const std::string& path) {
  std::vector<io::Json> lines;
  for (const std::string& line : split(test::read_file(path), '\n')) {
    if (!line.empty()) lines.push_back(io::parse_json(line));
  }
  return lines;
}

torch::Tensor read_codes(const std::string& path) {
  return checkpoint::as_tensor(io::read_npy(path)).clone();
}

eval::ReconstructConfig small_config(const std::vector<std::string>& inputs) {
  eval::ReconstructConfig config;
  config.model = golden("vq_ema/ckpt.pt");
  config.inputs = inputs;
  config.image_size = 16;
  config.tokenizer.device = "cpu";
  return config;
}

}  // namespace

TEST_CASE("reconstruct: codes, pictures and measures are those of the model", "[eval][golden]") {
  struct Case {
    std::string name, file, weights;
    int64_t side;
  };
  for (const Case& c : {Case{"vq16", "vq16/ckpt.safetensors", "auto", 64},
                        Case{"vq_ema", "vq_ema/ckpt.pt", "ema", 16},
                        Case{"vq_ema", "vq_ema/ckpt.pt", "model", 16}}) {
    CAPTURE(c.name, c.weights);
    const test::TempDir temp;
    const torch::Tensor image_B3HW = write_images(temp / "in", c.name + "/images.npy");
    eval::ReconstructConfig config;
    config.model = golden(c.file);
    config.inputs = {temp / "in"};
    config.tokenizer = {.weights = c.weights, .device = "cpu"};
    config.image_size = c.side;
    config.out = temp / "out";
    const eval::ReconstructResult result = eval::reconstruct(config);

    const auto model = infer::load_tokenizer(config.model, config.tokenizer);
    const torch::Tensor code = model.model->encode(image_B3HW);
    CHECK(read_codes(temp / "out/codes.npy").equal(code));
    // The pictures are the golden's to 8 bits: nearly all codes are the golden's, too.
    const std::string prefix = c.name == "vq16" ? "vq16/" : str_cat("vq_ema/", c.weights, "_");
    const torch::Tensor same = code.eq(golden_tensor(prefix + "indices.npy"));
    CHECK(same.to(torch::kFloat).mean().item<float>() > 0.9);

    const torch::Tensor copy_BHW3 = to_uint8(model.model->decode(code, c.side, c.side));
    const auto lines = read_lines(temp / "out/images.jsonl");
    REQUIRE(lines.size() == 2);
    double psnr = 0, ssim = 0;
    for (int64_t i = 0; i < 2; ++i) {
      CHECK(test::read_picture(str_cat(temp / "out/00000", i, ".png")).equal(copy_BHW3[i]));
      const eval::ImageMetrics metrics =
          eval::compare_images(copy_BHW3[i], ((image_B3HW[i] + 1) / 2).contiguous());
      const io::Json& line = lines[static_cast<size_t>(i)];
      CHECK(line.get_int("index") == i);
      CHECK(line.get_string("file") == str_cat(temp / "in/", i == 0 ? "a" : "b", ".png"));
      CHECK(line.get_float("psnr") == Approx(metrics.psnr));
      psnr += metrics.psnr / 2;
      ssim += metrics.ssim / 2;
    }
    CHECK(result.psnr == Approx(psnr));
    CHECK(result.ssim == Approx(ssim));
    CHECK(result.images == 2);
    CHECK(result.codebook_usage ==
          Approx(static_cast<double>(std::get<0>(at::_unique(code)).numel()) /
                 static_cast<double>(model.model->codebook_size())));

    const torch::Tensor grid = test::read_picture(temp / "out/grid.png");  // a pair to a row
    CHECK(grid.sizes() == at::IntArrayRef({2 * (c.side + 2) + 2, 2 * (c.side + 2) + 2, 3}));
    const torch::Tensor original = grid.narrow(0, 2, c.side).narrow(1, 2, c.side);
    CHECK(original.equal(to_uint8(image_B3HW)[0]));
    CHECK(grid.narrow(0, 2, c.side).narrow(1, c.side + 4, c.side).equal(copy_BHW3[0]));
    const io::Json metrics = io::parse_json(test::read_file(temp / "out/metrics.json"));
    CHECK(metrics.get_float("psnr") == Approx(psnr));
    CHECK(metrics.get_object("settings").get_string("fingerprint") == model.model->fingerprint());
  }
}

TEST_CASE("reconstruct: another eval size resizes original and copy", "[eval]") {
  const test::TempDir temp;
  const torch::Tensor image_B3HW = write_images(temp / "in", "vq_ema/images.npy");
  eval::ReconstructConfig config = small_config({temp / "in"});
  config.eval_size = 11;
  config.out = temp / "out";
  const eval::ReconstructResult result = eval::reconstruct(config);

  const auto model = infer::load_tokenizer(config.model, config.tokenizer);
  // torch's bicubic by hand at one pixel: a = -0.75, half-pixel centres, no antialias
  const torch::Tensor copy_B3HW = model.model->decode(model.model->encode(image_B3HW), 16, 16);
  const auto weight = [](double x) {
    x = std::abs(x);
    return x <= 1 ? (1.25 * x - 2.25) * x * x + 1 : ((-0.75 * x + 3.75) * x - 6) * x + 3;
  };
  double expected = 0;
  const double centre = (5 + 0.5) * 16 / 11 - 0.5;
  const auto first = static_cast<int64_t>(std::floor(centre)) - 1;
  for (int64_t y = first; y < first + 4; ++y) {
    for (int64_t x = first; x < first + 4; ++x) {
      expected += weight(centre - static_cast<double>(y)) *
                  weight(centre - static_cast<double>(x)) * copy_B3HW[0][1][y][x].item<double>();
    }
  }
  const torch::Tensor saved = test::read_picture(temp / "out/000000.png");
  REQUIRE(saved.sizes() == at::IntArrayRef({11, 11, 3}));
  const double byte = std::clamp(127.5 * expected + 128, 0.0, 255.0);
  CHECK(std::abs(saved[5][5][1].item<double>() - std::floor(byte)) <= 1);
  CHECK(result.settings.get_int("eval_size") == 11);
  CHECK(result.settings.get_int("image_size") == 16);
}

TEST_CASE("reconstruct: LPIPS of the saved pictures when its weights are given", "[eval]") {
  const test::TempDir temp;
  eval::ReconstructConfig config =
      small_config({test::project_path("data/photos/coffee/coffee.jpg")});
  config.image_size = 64;
  config.out = temp / "out";
  config.lpips_vgg = golden("train_vq/vgg16.pth");
  config.lpips_lin = golden("train_vq/vgg_lpips.pth");
  const eval::ReconstructResult result = eval::reconstruct(config);

  auto lpips = eval::load_lpips(config.lpips_vgg, config.lpips_lin);
  const auto as_input = [](const torch::Tensor& pixels_HW3) {
    return pixels_HW3.permute({2, 0, 1}).unsqueeze(0).to(torch::kFloat) / 127.5 - 1;
  };
  const torch::Tensor grid = test::read_picture(temp / "out/grid.png");
  const torch::Tensor original = grid.narrow(0, 2, 64).narrow(1, 2, 64);
  const torch::Tensor copy = test::read_picture(temp / "out/000000.png");
  const double expected = lpips->forward(as_input(original), as_input(copy)).item<double>();
  CHECK(expected > 0);
  CHECK(result.lpips == Approx(expected).epsilon(1e-4));

  config.out = "";
  config.lpips_lin = "";
  CHECK_THAT(test::error_of([&] { eval::reconstruct(config); }),
             Contains("LPIPS: --lpips-lin is missing") && Contains("vgg.pth"));
  config.lpips_lin = golden("vq_ema/ckpt.pt");
  CHECK_THAT(test::error_of([&] { eval::reconstruct(config); }), Contains("vq_ema/ckpt.pt: "));
}

TEST_CASE("reconstruct: files, folders and tars in their order, up to the limit", "[eval]") {
  const test::TempDir temp;
  write_images(temp / "in", "vq_ema/images.npy");
  eval::ReconstructConfig config =
      small_config({temp / "in/b.png", temp / "in/a.png", temp / "in",
                    test::project_path("data/photos"), temp / "in/a.png"});
  config.out = temp / "out";
  config.batch_size = 3;
  CHECK(eval::reconstruct(config).images == 13);
  const auto lines = read_lines(temp / "out/images.jsonl");
  REQUIRE(lines.size() == 13);
  CHECK(lines[0].get_string("file") == temp / "in/b.png");
  CHECK(lines[2].get_string("file") == temp / "in/a.png");
  CHECK_THAT(lines[4].get_string("file"), Catch::EndsWith("photos/astronaut/astronaut.jpg"));
  const torch::Tensor codes = read_codes(temp / "out/codes.npy");
  CHECK(codes.sizes() == at::IntArrayRef({13, 8, 8}));
  CHECK(codes[0].equal(codes[3]));
  CHECK(codes[1].equal(codes[12]));

  config.must_overwrite = true;
  config.limit = 4;
  config.batch_size = 1;
  CHECK(eval::reconstruct(config).images == 4);
  CHECK(read_codes(temp / "out/codes.npy").equal(codes.narrow(0, 0, 4)));
  CHECK_FALSE(fs::exists(temp / "out/000004.png"));

  eval::ReconstructConfig digits = small_config({test::project_path("data/digits.tar.gz")});
  digits.split = "val";
  digits.limit = 20;
  digits.grid_pairs = 4;  // one to a row: images 0, 5, 10, 15
  digits.out = temp / "digits";
  CHECK(eval::reconstruct(digits).images == 20);
  const torch::Tensor grid = test::read_picture(temp / "digits/grid.png");
  REQUIRE(grid.sizes() == at::IntArrayRef({4 * 18 + 2, 2 * 18 + 2, 3}));
  for (int64_t row = 0; row < 4; ++row) {
    const std::string number = str_cat(row < 2 ? "00000" : "0000", 5 * row);
    const torch::Tensor copy = grid.narrow(0, 2 + 18 * row, 16).narrow(1, 20, 16);
    CHECK(copy.equal(test::read_picture(str_cat(temp / "digits/", number, ".png"))));
  }
}

TEST_CASE("reconstruct: broken images are left out and counted, or an error", "[eval]") {
  const test::TempDir temp;
  write_images(temp / "in", "vq_ema/images.npy");
  test::write_file(temp / "in/aa.png", "no picture");
  eval::ReconstructConfig config = small_config({temp / "in", temp / "in/aa.png", temp / "in"});
  // A named file that is the only one of its kind holds no readable image.
  CHECK_THAT(test::error_of([&] { eval::reconstruct(config); }), Contains("aa.png"));
  config.inputs.resize(1);
  config.out = temp / "out";
  const eval::ReconstructResult result = eval::reconstruct(config);
  CHECK(result.images == 2);
  CHECK(result.broken == 1);
  CHECK_THAT(read_lines(temp / "out/images.jsonl")[1].get_string("file"),
             Catch::EndsWith("in/b.png"));
  config.on_broken = "fail";
  config.out = temp / "other";
  CHECK_THAT(test::error_of([&] { eval::reconstruct(config); }),
             Contains("in/aa.png: not an image"));
  CHECK_FALSE(fs::exists(temp / "other"));
}
