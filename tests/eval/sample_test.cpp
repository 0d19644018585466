// What `vgen sample` draws for FID, against the same images drawn one by one, and which grids it
// refuses.

#include "vgen/eval/sample.h"

#include <torch/torch.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <filesystem>
#include <limits>

#include "codes/codes_support.h"
#include "eval/picture_support.h"
#include "gpt/golden_gpt.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/checkpoint/store.h"
#include "vgen/core/log.h"
#include "vgen/data/image.h"
#include "vgen/eval/pictures.h"
#include "vgen/eval/sample_session.h"
#include "vgen/io/npy.h"
#include "vgen/io/safetensors.h"
#include "vgen/tensor/image.h"
#include "vgen/tokenizer/vqgan.h"

namespace vgen::eval {
namespace {

using Catch::Matchers::Contains;
using test::AllClose;
using test::golden;

/// A GPT of 10 classes and 128 codes, drawn at 32 pixels: 2 x 2 codes.
SampleConfig small_model() {
  SampleConfig config;
  config.checkpoint = golden("gpt_c2i/ckpt.safetensors");
  config.gpt.n_head = 2;
  config.tokenizer = golden("vq16/ckpt.safetensors");
  config.settings = {.cfg_scale = 1.5, .top_k = 0, .seed = 3};
  config.precision = "fp32";
  config.device = "cpu";
  config.image_size = 32;
  config.threads = 1;
  return config;
}

torch::Tensor draw_for_fid(const std::string& npz, int64_t num_images, int64_t eval_size) {
  sample_fid({.model = small_model(),
              .num_images = num_images,
              .eval_size = eval_size,
              .npz = npz,
              .rank = 0,
              .world_size = 1,
              .local_rank = 0});
  const io::NpzFile file(npz);
  REQUIRE(file.names() == std::vector<std::string>{"arr_0"});
  return checkpoint::as_tensor(file.read("arr_0")).clone();
}

/// Image i shows the label `first + i`, mod 10.
void draw_pictures(const std::string& out, int64_t num_images, int64_t first) {
  std::string classes;
  for (int64_t i = 0; i < num_images; ++i) {
    classes += str_cat(i == 0 ? "" : ",", (first + i) % 10);
  }
  sample_images({.model = small_model(),
                 .classes = classes,
                 .class_names = {},
                 .count = 1,
                 .show_scales = false,
                 .out = out,
                 .must_overwrite = false});
}

/// What the text chunk `parameters` of a PNG holds.
std::string parameters_of(const std::string& path) {
  const std::string png = test::read_file(path), mark = std::string("tEXtparameters") + '\0';
  const size_t at = png.find(mark);
  REQUIRE(at != std::string::npos);
  size_t size = 0;  // big-endian, before the type
  for (size_t i = at - 4; i < at; ++i) size = size << 8 | static_cast<unsigned char>(png[i]);
  return png.substr(at + mark.size(), size - (mark.size() - 4));
}

/// A tokenizer of 128 codes with random weights, 8 pixels to a code.
std::string make_vq8(const std::string& path) {
  tokenizer::VqganConfig config;
  config.ch = 32;
  config.num_res_blocks = 1;
  config.encoder_ch_mult = config.decoder_ch_mult = {1, 1, 1, 1};
  config.z_channels = 32;
  config.codebook_size = 128;
  const tokenizer::Vqgan model(config);
  io::write_safetensors(path, checkpoint::as_arrays(checkpoint::named_state(*model)));
  return path;
}

/// A run of the golden GPT, block_size 36, that learned from the codes in `codes`.
std::string make_run(const std::string& run, const std::string& codes) {
  const auto model = test::golden_gpt("gpt_c2i");
  std::string yaml = str_cat("task: gpt\ndata: {train: ", codes, "}\nmodel:\n");
  for (const std::string& line : split(dump_config(model->config()), '\n')) {
    if (!line.empty()) yaml += str_cat("  ", line, "\n");
  }
  std::filesystem::create_directories(run + "/checkpoints");
  test::write_file(run + "/config.yaml", yaml);
  checkpoint::CheckpointStore(run + "/checkpoints", {})
      .save({.step = 1,
             .files = {{"model.safetensors", checkpoint::named_state(*model)}},
             .state = io::Json::object(),
             .metrics = {}});
  return run;
}

TEST_CASE("sample: FID's images are those of their label and index", "[eval]") {
  constexpr int64_t kImages = 70;  // a whole part and a piece of one
  const test::TempDir dir;
  const torch::Tensor image_BHW3 = draw_for_fid(dir / "same.npz", kImages, 32);
  CHECK(image_BHW3.scalar_type() == torch::kUInt8);
  CHECK(image_BHW3.sizes().vec() == std::vector<int64_t>{kImages, 32, 32, 3});
  // index % num_classes is the label.
  draw_pictures(dir / "pictures", kImages, 0);
  draw_pictures(dir / "others", kImages, 1);
  int64_t others = 0;
  for (int64_t i = 0; i < kImages; ++i) {
    INFO(i);
    CHECK(image_BHW3[i].equal(test::read_picture(dir / ("pictures/" + picture_name(i)))));
    others += image_BHW3[i].equal(test::read_picture(dir / ("others/" + picture_name(i)))) ? 0 : 1;
  }
  CHECK(others > kImages / 2);  // the label was seen
}

TEST_CASE("sample: FID's images are resized as LlamaGen resizes them", "[eval]") {
  constexpr int64_t kImages = 12;
  const test::TempDir dir;
  draw_pictures(dir / "pictures", kImages, 0);
  const auto code = checkpoint::as_tensor(io::read_npy(dir / "pictures/codes.npy")).clone();
  const auto tokenizer = infer::load_tokenizer(small_model().tokenizer, {.device = "cpu"});
  const torch::Tensor image_B3HW = tokenizer.model->decode(code, 32, 32);
  for (const int64_t size : {20, 45}) {
    INFO(size);
    const torch::Tensor image_BHW3 =
        draw_for_fid(dir / str_cat("at-", size, ".npz"), kImages, size);
    CHECK_THAT(
        image_BHW3,
        AllClose(to_uint8(at::upsample_bicubic2d(image_B3HW, {size, size}, false)), test::kExact));
  }
  // The other way to shrink shows: this test would see it.
  CHECK_FALSE(draw_for_fid(dir / "again.npz", kImages, 20)
                  .equal(to_uint8(at::_upsample_bicubic2d_aa(image_B3HW, {20, 20}, false))));
}

TEST_CASE("sample: a picture tells how it was drawn, in ASCII", "[eval]") {
  const test::TempDir dir;
  const std::string dog = "\xe7\x8a\xac";  // not in Latin-1, which the chunk is
  test::write_file(dir / "names.txt", str_cat("a\nb\n", dog, "\nd\ne\nf\ng\nh\ni\nj\n"));
  SampleConfig model = small_model();
  model.settings.seed = std::numeric_limits<uint64_t>::max();
  model.image_size = 0;
  model.checkpoint = golden("gpt_c2i/ckpt.pt");  // tells 64 pixels
  model.batch_size = 3;
  sample_images({.model = model,
                 .classes = dog,
                 .class_names = dir / "names.txt",
                 .count = 1,
                 .show_scales = false,
                 .out = dir / "out",
                 .must_overwrite = false});
  const std::string text = parameters_of(dir / "out/000000.png");
  CHECK(std::ranges::all_of(text, [](char c) { return c >= ' ' && c <= '~'; }));
  const io::Json parameters = io::parse_json(text);
  CHECK(parameters.get_string("class_name") == dog);
  CHECK(parameters.get_int("class_id") == 2);
  CHECK(parameters.get_int("image_size") == 64);
  CHECK(parameters.get_string("device") == "cpu");
  CHECK(parameters.get_int("batch_size") == 3);
  CHECK_THAT(text, Contains("\"seed\":18446744073709551615"));
  const io::Json summary = io::parse_json(test::read_file(dir / "out/samples.json"));
  CHECK_THAT(io::dump_json(summary.get_object("settings")),
             Contains("\"seed\":18446744073709551615") && Contains("\"image_size\":64"));
}

TEST_CASE("sample: FID goes on with a seed above 2^63", "[eval]") {
  const test::TempDir dir;
  SampleFidConfig config{.model = small_model(),
                         .num_images = 65,
                         .eval_size = 8,
                         .npz = dir / "x.npz",
                         .rank = 1,
                         .world_size = 2,
                         .local_rank = 0};
  config.model.settings.seed = uint64_t{1} << 63;
  sample_fid(config);  // leaves the other rank's part open
  config.rank = 0;
  config.model.settings.seed += 1;
  CHECK_THAT(test::error_of([&] { sample_fid(config); }),
             Contains("seed is 9223372036854775808, expected 9223372036854775809"));
  config.model.settings.seed -= 1;
  sample_fid(config);
  CHECK(std::filesystem::exists(config.npz));
}

TEST_CASE("sample: another grid than the trained one is refused unless it is meant", "[eval]") {
  const test::TempDir dir;
  SampleConfig official = small_model();
  official.checkpoint = golden("gpt_c2i/ckpt.pt");  // args: 64 pixels, 16 to a code
  official.image_size = 0;
  CHECK(SampleSession(official).image_size() == 64);
  official.image_size = 128;
  const auto error_of = [](const SampleConfig& config) {
    return test::error_of([&] { SampleSession session(config); });
  };
  CHECK(error_of(official) ==
        official.checkpoint +
            ": was trained at 64 pixels, 4 x 4 codes (args.image_size), but 128 pixels, 8 x 8 "
            "codes are asked for; leave --image-size out, or allow it with --any-size");
  official.any_size = true;
  CHECK(SampleSession(official).image_size() == 128);

  SampleConfig run = small_model();
  run.checkpoint = make_run(dir / "run", dir / "nowhere");
  run.image_size = 0;
  CHECK(SampleSession(run).image_size() == 96);
  run.image_size = 64;
  CHECK_THAT(error_of(run), Contains("was trained at 96 pixels, 6 x 6 codes (") &&
                                Contains("run/config.yaml), but 64 pixels, 4 x 4 codes"));
  // A config says another grid than the training arguments do.
  SampleConfig other = official;
  other.image_size = 0;
  other.any_size = false;
  test::write_file(dir / "gpt.yaml", dump_config(test::golden_config("gpt_c2i")));
  other.gpt.config = dir / "gpt.yaml";
  CHECK_THAT(error_of(other), Contains("was trained at 64 pixels") && Contains("96 pixels"));
}

TEST_CASE("sample: bare weights do not tell their grid, so one that is not asked for is told",
          "[eval]") {
  const test::TempDir dir;
  SampleConfig bare = small_model();
  const auto log_of = [&](int64_t image_size, int64_t drawn) {
    bare.image_size = image_size;
    const std::string log = dir / str_cat(image_size, ".txt");
    init_logging({.file = log});
    CHECK(SampleSession(bare).image_size() == drawn);
    init_logging({});
    return test::read_file(log);
  };
  CHECK_THAT(log_of(0, 256),
             Contains(": does not tell what size it was trained at; 256 pixels are drawn, 16 x 16 "
                      "codes; say another with --image-size"));
  CHECK_THAT(log_of(128, 128), !Contains("does not tell"));
}

TEST_CASE("sample: a tokenizer with other pixels per code is refused where that is known",
          "[eval]") {
  const test::TempDir dir;
  const std::string vq8 = make_vq8(dir / "vq8.safetensors");
  const auto error_of = [](const SampleConfig& config) {
    return test::error_of([&] { SampleSession session(config); });
  };
  SampleConfig official = small_model();
  official.checkpoint = golden("gpt_c2i/ckpt.pt");
  official.tokenizer = vq8;
  for (const int64_t image_size : {0, 32, 64}) {
    official.image_size = image_size;
    CHECK(
        error_of(official) ==
        official.checkpoint +
            ": learned codes of 16 x 16 pixels (args.downsample_size), but a code of " + vq8 +
            " is 8 x 8; name the tokenizer that it was trained with, or allow it with --any-size");
  }
  // A run tells it by the codes that it learned from.
  codes::CodeInfo info = test::tiny_info();
  info.grid = {6, 6};
  info.image_size = 96;
  info.codebook_size = 128;
  info.crop_sets = {codes::parse_crop_set("center")};
  test::write_codes(dir / "codes", info, 4, 4);
  SampleConfig run = small_model();
  run.checkpoint = make_run(dir / "run", dir / "codes");
  run.image_size = 0;
  CHECK(SampleSession(run).image_size() == 96);
  run.tokenizer = vq8;
  CHECK_THAT(error_of(run),
             Contains("learned codes of 16 x 16 pixels (" + (dir / "codes/index.json") +
                      "), but a code of " + vq8 + " is 8 x 8"));
  run.any_size = true;
  CHECK(SampleSession(run).image_size() == 48);
}

}  // namespace
}  // namespace vgen::eval
