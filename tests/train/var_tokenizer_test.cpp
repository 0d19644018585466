// Training of VAR's tokenizer: whole runs on small pictures.

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>

#include "support/pictures.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/checkpoint/named_tensors.h"
#include "vgen/checkpoint/store.h"
#include "vgen/core/random.h"
#include "vgen/core/strings.h"
#include "vgen/data/image.h"
#include "vgen/data/transforms.h"
#include "vgen/infer/load_tokenizer.h"
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
    const std::string images = dir_ / "images";
    write_images("images", 8);
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

  /// That many pictures of its own in a folder; as tensors (count, 3, 16, 16), in their order.
  torch::Tensor write_images(const std::string& folder, int64_t count) const {
    std::vector<torch::Tensor> pictures;
    for (int64_t i = 0; i < count; ++i) {
      const auto x = static_cast<double>(3 + i % 11);
      const data::Image image = disc(x, 15 - x);
      test::write_picture(str_cat(dir_ / folder, "/a/", 100 + i, ".png"), image);
      pictures.push_back(data::to_tensor(image));
    }
    return torch::stack(pictures);
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

TEST_CASE("var tokenizer: the progress line tells of every scale", "[train]") {
  const SmallRun small;
  const auto config = load_config<VarTokenizerRunConfig>(small.config(), {});
  const VarTokenizerTask task(config, {.micro_batch_size = 4, .is_training = false});
  const Metrics means{{"gen_loss", 0.25},     {"rec_loss", 0.125},   {"codebook_usage", 0.5},
                      {"dead_codes", 17.4},   {"usage_p1", 0.00024}, {"error_p1", 0.996},
                      {"usage_p2", 0.031},    {"error_p2", 0.5},     {"usage_p4", 0.64},
                      {"error_p4", 0.072345}, {"usage_p8", 1},       {"error_p8", 0.0009}};
  CHECK(task.headline_text(means) ==
        "gen_loss 0.2500 | rec_loss 0.1250 | usage 0.024 3.1 64 100 % | dead 17 | "
        "error 100 50 7.2 0.09 %");
  CHECK(task.headline_text({}).empty());  // before the first step

  // What a run prints is what it logs.
  small.train("r", {"steps=3"});
  std::vector<std::string> shown{"usage", "error"};
  for (std::string& field : shown) {
    const std::string name = field + "_p";
    for (const std::string side : {"1", "2", "4", "8"}) {
      const double percent = 100 * small.values("r", "train/" + name + side).at(3);
      char text[16];
      std::snprintf(text, sizeof(text), percent < 9.95 ? " %.2g" : " %.0f", percent);
      field += text;
    }
    field += " %";
  }
  const double dead = small.values("r", "train/dead_codes").at(3);
  CHECK_THAT(test::read_file(small.path("r/log.txt")),
             Contains(str_cat(" | ", shown[0], " | dead ", format_fixed(dead, 0), " | ", shown[1],
                              " | ")));
}

TEST_CASE("var tokenizer: validation measures the picture after each scale, of all images",
          "[train]") {
  const SmallRun small;
  const auto measured_by_hand = [&](const std::string& run, const torch::Tensor& image_B3SS) {
    const auto tokenizer = infer::load_tokenizer(small.path(run), {.device = "cpu"});
    std::vector<double> errors;
    for (const auto& image : tokenizer.model->decode_scales(tokenizer.model->encode(image_B3SS))) {
      errors.push_back(torch::mse_loss(image, image_B3SS).item<double>());
    }
    return errors;
  };
  const auto check = [&](const TrainResult& result, const std::vector<double>& expected) {
    const std::string sides[] = {"1", "2", "4", "8"};
    for (size_t k = 0; k < 4; ++k) {
      INFO("side " << sides[k]);
      CHECK(result.metrics.at("rec_loss_p" + sides[k]) == Approx(expected[k]).epsilon(1e-4));
    }
  };
  // Two batches of three and one of two.
  const auto few_B3SS = small.write_images("few", 8);
  const auto few =
      small.train("few_run", {"data.val.path=" + small.path("few"), "val_batch_size=3"});
  check(few, measured_by_hand("few_run", few_B3SS));
  // 40 batches: every other one is looked at.
  const auto many_B3SS = small.write_images("many", 40);
  const auto many =
      small.train("many_run", {"data.val.path=" + small.path("many"), "val_batch_size=1"});
  check(many, measured_by_hand("many_run", many_B3SS.slice(0, 0, 40, 2)));
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
  std::vector<std::string> overrides = {"codebook.reseed_every=0", "codebook.scale_dropout=0",
                                        "model.dropout_p=0",       "loss.disc_weight=0",
                                        "checkpoint.every=1",      "steps=2"};
  small.train("r", overrides);

  // The same two steps by hand.
  const auto config = load_config<VarTokenizerRunConfig>(small.config(), overrides);
  torch::manual_seed(Rng(0, Purpose::kInit).derive_seed());
  tokenizer::MultiScaleVqvae model(config.model);
  torch::optim::Adam adam(
      model->parameters(),
      torch::optim::AdamOptions(config.optimizer.lr).betas({0.9, 0.95}).eps(config.optimizer.eps));
  auto loader = data::Loader::for_training(config.data, {.batch_size = 4});
  for (const int64_t step : {1, 2}) {
    INFO("step " << step);
    const torch::Tensor image_B3SS = loader.next().image_B3HW;
    const auto output = model->forward(image_B3SS);
    const auto rec_loss = torch::mse_loss(output.image_B3SS, image_B3SS);
    adam.zero_grad();
    (rec_loss + output.quantized.loss).backward();
    torch::nn::utils::clip_grad_norm_(model->parameters(), config.run.max_grad_norm);
    adam.step();
    const auto term = [&](const std::string& name) {
      return small.values("r", "train/" + name).at(step);
    };
    CHECK(term("rec_loss") == Approx(rec_loss.item<double>()).epsilon(1e-5));
    CHECK(term("vq_loss") == Approx(output.quantized.loss.item<double>()).epsilon(1e-5));
    const torch::Tensor left_K = output.quantized.error_K / output.quantized.power;
    CHECK(term("error_p1") == Approx(left_K[0].item<double>()).epsilon(1e-5));
    CHECK(term("error_p8") == Approx(left_K[3].item<double>()).epsilon(1e-5));
    CHECK(term("reseeded_codes") == 0);
    if (step == 2) continue;  // rounding now moves the biases in front of a norm
    const auto weights =
        io::load_state_dict(small.path("r/checkpoints/step_0000001/model.safetensors"));
    const auto state = checkpoint::named_state(*model);
    REQUIRE(weights.tensors.size() == state.size());
    for (const auto& item : state) {
      INFO(item.name);
      const io::Array* found = weights.find(item.name);
      REQUIRE(found != nullptr);
      CHECK_THAT(checkpoint::as_tensor(*found), test::AllClose(item.tensor, {1e-6, 1e-5}));
    }
  }

  // Care is what makes a difference.
  overrides[0] = "codebook.reseed_every=1";
  small.train("cared", overrides);
  CHECK(small.file("cared", 2, "model") != small.file("r", 2, "model"));
}

/// Terms of two steps against a discriminator that works from the first one.
void check_adversarial(const SmallRun& small, const std::string& name) {
  const auto values = [&](const char* term) { return small.values(name, str_cat("train/", term)); };
  for (const int64_t step : {1, 2}) {
    INFO("step " << step);
    CHECK(values("gen_adv_loss").at(step) != 0);
    CHECK(values("disc_loss").at(step) > 0);
    CHECK(values("gen_grad_norm").at(step) > 0);
    CHECK(values("disc_grad_norm").at(step) > 0);
  }
  CHECK(values("disc_loss").at(1) != values("disc_loss").at(2));
}

TEST_CASE("var tokenizer: trains with the adaptive weight of the discriminator", "[train]") {
  const SmallRun small;
  for (const std::string is_adaptive : {"true", "false"}) {
    INFO(is_adaptive);
    small.train(is_adaptive, {"steps=2", "loss.disc_start=0", "codebook.scale_dropout=0",
                              "loss.disc_adaptive_weight=" + is_adaptive});
    check_adversarial(small, is_adaptive);
    for (const auto& [step, weight] : small.values(is_adaptive, "train/disc_adaptive_weight")) {
      CHECK((weight == 1) == (is_adaptive == "false"));
      CHECK(weight > 0);
    }
  }
  CHECK(small.file("true", 2, "model") != small.file("false", 2, "model"));
}

TEST_CASE("var tokenizer: trains against StyleGAN's discriminator", "[train]") {
  const SmallRun small;
  // Few images: whatever the model, it is 512 channels wide.
  small.train("r",
              {"steps=2", "global_batch_size=2", "loss.disc_start=0", "loss.disc_type=stylegan"});
  check_adversarial(small, "r");
  const auto weights =
      io::load_state_dict(small.path("r/checkpoints/step_0000002/discriminator.safetensors"));
  CHECK(std::ranges::any_of(weights.tensors, [](const io::NamedArray& item) {
    return item.name.starts_with("final_linear.");
  }));
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

TEST_CASE("var tokenizer: its weights tell their scales, wherever they lie", "[train]") {
  const SmallRun small;
  small.train("r", {"steps=1"});
  const std::string folder = small.path("r/checkpoints/step_0000001/");
  for (const std::string name : {"model", "ema"}) {
    INFO(name);
    const std::string alone = small.path(name + ".safetensors");
    fs::copy_file(folder + name + ".safetensors", alone);
    CHECK(infer::load_tokenizer(alone).model->patch_nums() == std::vector<int64_t>{1, 2, 4, 8});
    CHECK_THAT(error_of([&] {
                 infer::load_tokenizer(alone, {.patch_nums = {1, 3, 5, 8}});
               }),
               Contains("[1, 2, 4, 8]") && Contains("[1, 3, 5, 8]"));
  }
  CHECK(io::load_state_dict(folder + "discriminator.safetensors").metadata ==
        io::Metadata{{"format", "pt"}});
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
