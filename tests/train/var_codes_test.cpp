// From images to VAR by way of codes: a tokenizer of several scales is trained, `vgen extract`'s
// library encodes with it, and VAR learns the same from the codes as from the images.

#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>

#include "support/pictures.h"
#include "support/support.h"
#include "vgen/codes/code_dataset.h"
#include "vgen/core/strings.h"
#include "vgen/data/image.h"
#include "vgen/data/transforms.h"
#include "vgen/extract/extract.h"
#include "vgen/train/run.h"

namespace vgen::train {
namespace {

using Catch::Contains;
namespace fs = std::filesystem;

/// A bright square on a dark ground, wider than high.
data::Image picture(int64_t number) {
  data::Image image{.width = 22, .height = 18, .rgb = data::Pixels(22 * 18 * 3)};
  for (int64_t y = 0; y < image.height; ++y) {
    for (int64_t x = 0; x < image.width; ++x) {
      const bool is_inside = std::abs(x - 5 - number) < 4 && std::abs(y - 13 + number) < 4;
      for (int64_t c = 0; c < 3; ++c) {
        image.row(y)[x * 3 + c] = static_cast<uint8_t>(is_inside ? 230 - 40 * c : 20 + 20 * c);
      }
    }
  }
  return image;
}

/// Pictures of two classes, and a tokenizer of these scales that has learnt them.
class Fixture {
 public:
  explicit Fixture(const std::vector<int64_t>& patch_nums) : patch_nums_(format_shape(patch_nums)) {
    write_pictures("images", 0);
    test::write_file(
        path("tokenizer.yaml"),
        str_cat("task: var_tokenizer\nsteps: 80\nglobal_batch_size: 4\nprecision: fp32\n"
                "threads: 1\nema_decay: 0.8\n"
                "model: {ch: 32, num_res_blocks: 1, ch_mult: [1, 1], z_channels: 8, "
                "codebook_size: 32, patch_nums: ",
                patch_nums_,
                "}\n"
                "codebook: {reseed_every: 5}\nloss: {perceptual_weight: 0, disc_weight: 0}\n"
                "data: {image_size: 16, flip_prob: 0, train: {path: ",
                path("images"), "}}\noptimizer: {lr: 2e-3}\n"));
    run({path("tokenizer.yaml"), {}, path("tokenizer"), "never"});
  }

  std::string path(const std::string& name) const { return dir_ / name; }

  /// Eight pictures, the numbers from `first` on, round about.
  void write_pictures(const std::string& name, int64_t first) const {
    for (int64_t i = 0; i < 8; ++i) {
      test::write_picture(path(str_cat(name, "/c", i % 2, "/", i, ".png")),
                          picture((first + i) % 8));
    }
  }

  extract::ExtractConfig extraction(const std::string& out) const {
    extract::ExtractConfig config;
    config.tokenizer = path("tokenizer");
    config.tokenizer_options.device = "cpu";
    config.input.path = path("images");
    config.out = path(out);
    config.threads = 1;
    return config;
  }

  /// Two steps of VAR. Returns what it logged and its weights.
  std::pair<std::string, std::string> train_var(const std::string& name,
                                                const std::string& data) const {
    test::write_file(
        path(name + ".yaml"),
        str_cat("task: var\nsteps: 2\nglobal_batch_size: 4\nprecision: fp32\nthreads: 1\n"
                "log_every: 1\ntensorboard: false\n"
                "model: {depth: 2, dim: 32, n_head: 2, patch_nums: ",
                patch_nums_,
                ", num_classes: 2, "
                "codebook_size: 32, z_channels: 8, class_dropout_prob: 0.5, drop_path_rate: 0}\n"
                "tokenizer: {path: ",
                path("tokenizer"), "}\npreview: {num_images: 2, top_k: 0}\n", data,
                "checkpoint: {every: 2, best_metric: loss, best_mode: min}\n"));
    const TrainResult result = run({path(name + ".yaml"), {}, path(name), "never"});
    std::string losses;
    for (const auto& line : split(test::read_file(path(name) + "/metrics.jsonl"), '\n')) {
      if (line.empty()) continue;
      const io::Json json = io::parse_json(line);
      for (const auto& [key, value] : json.members) {
        const bool is_rate =
            key.ends_with("_per_s") || key.ends_with("share") || key.ends_with("mfu");
        if (!is_rate) losses += str_cat(key, " ", io::dump_json(value), "\n");
      }
    }
    CHECK(result.metrics.contains("loss"));
    return {losses, test::read_file(path(name) + "/checkpoints/step_0000002/model.safetensors")};
  }
  /// The same of extracted codes, and of the images that they are of.
  auto train_on_codes(const std::string& codes) const {
    return train_var("from_codes",
                     str_cat("data: {train: ", path(codes), ", val: ", path(codes), "}\n"));
  }
  auto train_on_images() const {
    return train_var("from_images",
                     str_cat("images: {image_size: 16, transform: center_crop, val_transform: "
                             "center_crop, train: {path: ",
                             path("images"), "}, val: {path: ", path("images"), "}}\n"));
  }

 private:
  std::string patch_nums_;
  test::TempDir dir_;
};

TEST_CASE("var codes: extracted codes are those of the tokenizer, and teach the same as images",
          "[train]") {
  const std::vector<int64_t> patch_nums = {1, 2, 4, 8};
  const Fixture fixture(patch_nums);
  auto config = fixture.extraction("codes");
  config.verify = 8;  // throws unless the codes decode to their images
  const auto extracted = extract::extract(config);
  CHECK(extracted.is_complete);
  REQUIRE(extracted.verify.has_value());
  CHECK(extracted.verify->crops == 8);
  CHECK(extracted.verify->equal_codes == 8 * 85);
  CHECK(extracted.verify->psnr > extracted.verify->psnr_shuffled + 1);

  const auto loaded = infer::load_tokenizer(fixture.path("tokenizer"), {.device = "cpu"});
  const auto codes = codes::CodeDataset::open(fixture.path("codes"));
  CHECK(codes.info().patch_nums == patch_nums);
  CHECK(codes.info().num_tokens() == 85);
  CHECK(codes.info().tokenizer == loaded.model->fingerprint());
  CHECK(codes.info().image_size == 16);
  REQUIRE(codes.size() == 8);
  const auto images = data::Dataset::open(config.input);
  for (int64_t i = 0; i < 8; ++i) {
    INFO("image " << i);
    const data::Image crop = data::center_crop(data::decode_image(images.read(i)), 16);
    std::vector<int64_t> code_L(85);
    codes.read(i, 0, 0, code_L);
    CHECK(torch::equal(torch::tensor(code_L),
                       loaded.model->encode(data::to_tensor(crop).unsqueeze(0))[0]));
    CHECK(codes.label(i) == images.label(i));
  }

  const auto from_codes = fixture.train_on_codes("codes");
  const auto from_images = fixture.train_on_images();
  CHECK_THAT(from_codes.first, Contains("train/loss ") && Contains("val/loss_last "));
  CHECK(from_codes.first == from_images.first);
  CHECK((from_codes.second == from_images.second));

  // The check is not passed by codes of other pictures.
  fixture.write_pictures("others", /*first=*/3);
  auto others = config.input;
  others.path = fixture.path("others");
  CHECK_THAT(test::error_of(
                 [&] { extract::verify(*loaded.model, codes, data::Dataset::open(others), 8, 4); }),
             Contains("of the codes of 8 crops are those of encoding them again"));

  // Other crops are another lesson.
  config = fixture.extraction("cropped");
  config.crops = {"five_crop:1.4"};
  extract::extract(config);
  const auto from_crops = fixture.train_var(
      "from_crops",
      str_cat("data: {train: ", fixture.path("cropped"), ", val: ", fixture.path("codes"), "}\n"));
  CHECK(from_crops.first != from_codes.first);
}

TEST_CASE("var codes: scales that begin with four tokens", "[train]") {
  const Fixture fixture({2, 4, 8});
  extract::extract(fixture.extraction("codes"));
  const auto codes = codes::CodeDataset::open(fixture.path("codes"));
  CHECK(codes.info().patch_nums == std::vector<int64_t>{2, 4, 8});
  CHECK(codes.info().num_tokens() == 84);
  const auto from_codes = fixture.train_on_codes("codes");
  const auto from_images = fixture.train_on_images();
  CHECK(from_codes.first == from_images.first);
  CHECK((from_codes.second == from_images.second));
  for (const char* name : {"from_codes", "from_images"}) {
    CHECK(fs::is_regular_file(fixture.path(name) + "/samples/step_0000002.png"));
  }
}

}  // namespace
}  // namespace vgen::train
