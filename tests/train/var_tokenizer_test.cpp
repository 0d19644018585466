// Training of VAR's tokenizer: whole runs on small pictures.

#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <map>

#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/checkpoint/store.h"
#include "vgen/core/strings.h"
#include "vgen/data/image.h"
#include "vgen/io/json.h"
#include "vgen/train/run.h"
#include "vgen/train/var_tokenizer_task.h"

namespace vgen::train {
namespace {

using Catch::Contains;
using test::error_of;
namespace fs = std::filesystem;

/// A folder of small pictures, a bright disc on a dark ground at places of its own each, and a
/// config that trains on them in milliseconds a step.
class SmallRun {
 public:
  SmallRun() {
    fs::create_directories(dir_ / "images/a");
    for (int64_t i = 0; i < 8; ++i) {
      const auto png =
          data::encode_png(disc(3 + static_cast<double>(i), 12 - static_cast<double>(i)));
      test::write_file(dir_ / str_cat("images/a/", i, ".png"),
                       {reinterpret_cast<const char*>(png.data()), png.size()});
    }
    const std::string images = dir_ / "images";
    test::write_file(
        config(),
        str_cat("task: var_tokenizer\nsteps: 6\nglobal_batch_size: 4\nprecision: fp32\nthreads: 1\n"
                "log_every: 1\nema_decay: 0.9\n"
                "model: {ch: 32, num_res_blocks: 1, ch_mult: [1, 1], z_channels: 8, "
                "codebook_size: 32, patch_nums: [1, 2, 4, 8], dropout_p: 0.1}\n"
                "codebook: {reseed_every: 2, scale_dropout: 0.2}\n"
                "loss: {perceptual_weight: 0, disc_dim: 8, disc_num_layers: 1, disc_start: 2}\n"
                "data: {image_size: 16, train: {path: ",
                images, "}, val: {path: ", images, "}}\ncheckpoint: {every: 2, keep_last: 0}\n"));
  }

  std::string config() const { return dir_ / "small.yaml"; }
  std::string path(const std::string& name) const { return dir_ / name; }

  TrainResult train(const std::string& name, std::vector<std::string> overrides = {},
                    const std::string& resume = "never") const {
    return run({config(), std::move(overrides), dir_ / name, resume});
  }

  /// Metrics by step: the lines that have `key`.
  std::map<int64_t, double> values(const std::string& name, const std::string& key) const {
    std::map<int64_t, double> values;
    for (const auto& line : split(test::read_file(dir_ / name + "/metrics.jsonl"), '\n')) {
      if (line.empty()) continue;
      const io::Json json = io::parse_json(line);
      if (json.find(key) != nullptr) values[json.get_int("step")] = json.get_float(key);
    }
    return values;
  }

  std::string file(const std::string& name, int64_t step, const std::string& file) const {
    return test::read_file(str_cat(dir_ / name, "/checkpoints/", checkpoint::step_name(step), "/",
                                   file, ".safetensors"));
  }

 private:
  static data::Image disc(double x0, double y0) {
    data::Image image{.width = 16, .height = 16, .rgb = data::Pixels(16 * 16 * 3)};
    for (int y = 0; y < 16; ++y) {
      for (int x = 0; x < 16; ++x) {
        const bool is_inside = std::hypot(x - x0, y - y0) < 4;
        for (int c = 0; c < 3; ++c) {
          image.rgb[static_cast<size_t>((y * 16 + x) * 3 + c)] = is_inside ? 230 : 20 + 20 * c;
        }
      }
    }
    return image;
  }

  test::TempDir dir_;
};

TEST_CASE("var tokenizer: learns a few pictures", "[train]") {
  const SmallRun small;
  const TrainResult result =
      small.train("r", {"steps=60", "loss.disc_weight=0", "codebook.scale_dropout=0",
                        "model.dropout_p=0", "optimizer.lr=2e-3", "validate_every=30"});
  CHECK(result.is_complete);
  const auto rec_loss = small.values("r", "train/rec_loss");
  CHECK(rec_loss.at(60) < 0.3 * rec_loss.at(1));
  CHECK(result.metrics.at("rec_loss") < 0.5 * rec_loss.at(1));
  CHECK(small.values("r", "train/vq_loss").at(60) > 0);

  // What is told of the codes.
  for (const std::string scale : {"1", "2", "4", "8"}) {
    INFO(scale);
    const double usage = result.metrics.at("usage_p" + scale);
    CHECK(usage > 0);
    CHECK(usage <= result.metrics.at("codebook_usage"));
    CHECK(small.values("r", "train/usage_p" + scale).at(60) > 0);
    CHECK(result.metrics.contains("rec_loss_p" + scale));
  }
  CHECK(result.metrics.at("rec_loss_p8") < result.metrics.at("rec_loss_p1"));
  CHECK(result.metrics.at("dead_codes") ==
        Approx(32 * (1 - result.metrics.at("codebook_usage"))).margin(1e-6));
  CHECK(small.values("r", "train/reseeded_codes").at(2) > 0);
  CHECK(small.values("r", "train/reseeded_codes").at(3) == 0);  // not due
}

TEST_CASE("var tokenizer: a resumed run goes on bit for bit", "[train]") {
  const SmallRun small;
  for (const std::string accum : {"1", "2"}) {
    INFO("micro-batches: " << accum);
    const std::vector<std::string> overrides = {"grad_accum_steps=" + accum};
    std::vector<std::string> short_overrides = overrides;
    short_overrides.push_back("steps=3");
    small.train("whole" + accum, overrides);
    small.train("cut" + accum, short_overrides);
    CHECK(small.train("cut" + accum, overrides, "auto").steps_done == 6);
    for (const char* file : {"model", "ema", "discriminator", "optimizer"}) {
      INFO(file);
      CHECK(small.file("whole" + accum, 6, file) == small.file("cut" + accum, 6, file));
    }
    CHECK(small.values("whole" + accum, "train/gen_loss") ==
          small.values("cut" + accum, "train/gen_loss"));
  }
}

TEST_CASE("var tokenizer: without care, nothing but the official training happens", "[train]") {
  const SmallRun small;
  const std::vector<std::string> off = {"codebook.reseed_every=0", "codebook.scale_dropout=0",
                                        "model.dropout_p=0", "steps=2", "loss.disc_weight=0"};
  small.train("r", off);
  for (const auto& [step, count] : small.values("r", "train/reseeded_codes")) CHECK(count == 0);
}

TEST_CASE("var tokenizer: begins with weights of another schedule", "[train]") {
  const SmallRun small;
  small.train("first", {"steps=2"});
  const std::string weights = small.path("first/checkpoints/step_0000002/model.safetensors");
  small.train("second", {"steps=1", "optimizer.lr=0", "init_from=" + weights, "ema_decay=0",
                         "model.patch_nums=[1, 3, 8]", "codebook.reseed_every=1"});
  const auto first = io::load_state_dict(weights);
  const auto second =
      io::load_state_dict(small.path("second/checkpoints/step_0000001/model.safetensors"));
  CHECK(second.find("quantize.ema_vocab_hit_SV")->shape == std::vector<int64_t>{3, 32});
  for (const auto& item : first.tensors) {
    if (item.name == "quantize.ema_vocab_hit_SV") continue;
    INFO(item.name);
    const io::Array* other = second.find(item.name);
    REQUIRE(other != nullptr);
    CHECK(torch::equal(checkpoint::as_tensor(item.array), checkpoint::as_tensor(*other)));
  }
}

TEST_CASE("var tokenizer: what cannot be trained is refused before anything is written",
          "[train]") {
  const SmallRun small;
  const auto refused = [&](const std::vector<std::string>& overrides) {
    const std::string message = error_of([&] { small.train("bad", overrides); });
    CHECK_FALSE(fs::exists(small.path("bad")));
    return message;
  };
  CHECK(
      refused({"data.image_size=18"}) ==
      "data.image_size is 18, but model.patch_nums ends with 8 cells of 2 pixels a side, which is "
      "an image of 16");
  CHECK(refused({"model.patch_nums=[1, 4, 4]"}) ==
        "model.patch_nums is [1, 4, 4], expected sides that grow from at least 1");
  CHECK_THAT(refused({"model.encoder_ch_mult=[1, 1]"}), Contains("encoder_ch_mult"));
  CHECK_THAT(refused({"codebook.reseed_every=-1"}), Contains("codebook.reseed_every"));
}

}  // namespace
}  // namespace vgen::train
