// Whole runs on small pictures: resume, averages, fp16, and what ends a run.

#include "vgen/train/run.h"

#include <catch2/catch.hpp>
#include <filesystem>
#include <map>

#include "support/pictures.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/checkpoint/store.h"
#include "vgen/core/random.h"
#include "vgen/core/strings.h"
#include "vgen/data/image.h"
#include "vgen/io/json.h"
#include "vgen/train/gpt_task.h"
#include "vgen/train/var_task.h"

namespace vgen::train {
namespace {

using test::error_of;
using test::TempDir;
namespace fs = std::filesystem;

/// A folder of small pictures and a config that trains on them in milliseconds a step.
class SmallRun {
 public:
  SmallRun() {
    for (int64_t i = 0; i < 12; ++i) {
      test::write_picture(dir_ / str_cat("images/a/", i, ".png"), test::noise_picture(20, 18, i));
    }
    const std::string images = dir_ / "images";
    test::write_file(config(), str_cat("steps: 6\nglobal_batch_size: 4\nprecision: fp32\n"
                                       "threads: 1\nlog_every: 1\nema_decay: 0.9\n"
                                       "model: {ch: 32, num_res_blocks: 1, encoder_ch_mult: [1, 1],"
                                       " decoder_ch_mult: [1, 1], z_channels: 8, "
                                       "codebook_size: 64, dropout_p: 0.1}\n"
                                       "loss: {perceptual_weight: 0, disc_dim: 8, disc_num_layers: "
                                       "1, disc_start: 2}\n"
                                       "data: {image_size: 16, train: {path: ",
                                       images, "}, val: {path: ", images,
                                       "}}\n"
                                       "checkpoint: {every: 2, keep_last: 0}\n"));
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

  std::string weights(const std::string& name, int64_t step) const {
    return test::read_file(
        str_cat(dir_ / name, "/checkpoints/", checkpoint::step_name(step), "/model.safetensors"));
  }

 private:
  TempDir dir_;
};

TEST_CASE("run: leaves all that a run folder promises", "[train]") {
  const SmallRun small;
  const TrainResult result = small.train("r", {"validate_every=3", "preview_every=3"});
  CHECK(result.is_complete);
  CHECK(result.steps_done == 6);
  CHECK(result.metrics.at("psnr") > 3);
  for (const char* name :
       {"config.yaml", "log.txt", "metrics.jsonl", "samples/step_0000003.png",
        "samples/step_0000006.png", "checkpoints/latest",
        "checkpoints/step_0000006/model.safetensors", "checkpoints/step_0000006/ema.safetensors",
        "checkpoints/step_0000006/discriminator.safetensors",
        "checkpoints/step_0000006/optimizer.safetensors"}) {
    INFO(name);
    CHECK(fs::is_regular_file(small.path(str_cat("r/", name))));
  }
  CHECK(small.values("r", "train/gen_loss").size() == 6);
  CHECK(small.values("r", "val/psnr").size() == 2);
  CHECK(small.values("r", "train/disc_loss").at(1) == 0);  // before disc_start
  CHECK(small.values("r", "train/disc_loss").at(6) != 0);

  // The resolved config is a config: the same run again.
  run({small.path("r/config.yaml"), {}, small.path("again"), "never"});
  CHECK(small.values("r", "train/gen_loss") == small.values("again", "train/gen_loss"));
  CHECK(small.weights("r", 6) == small.weights("again", 6));
}

TEST_CASE("run: a resumed run goes on bit for bit", "[train]") {
  const SmallRun small;
  small.train("whole", {"log_every=4"});
  // The schedule is constant, so a run of 3 steps is the beginning of one of 6. The log window of
  // four steps is cut in the middle.
  small.train("cut", {"log_every=4", "steps=3"});
  const TrainResult result = small.train("cut", {"log_every=4"}, "auto");
  CHECK(result.steps_done == 6);
  CHECK(small.weights("whole", 6) == small.weights("cut", 6));
  CHECK(small.values("whole", "train/gen_loss").at(6) ==
        small.values("cut", "train/gen_loss").at(6));
  for (const char* file : {"ema", "discriminator", "optimizer"}) {
    INFO(file);
    const std::string name = str_cat("checkpoints/step_0000006/", file, ".safetensors");
    CHECK(test::read_file(small.path("whole/" + name)) ==
          test::read_file(small.path("cut/" + name)));
  }
  // All done: nothing changes.
  const std::string before = test::read_file(small.path("cut/metrics.jsonl"));
  CHECK(small.train("cut", {"log_every=4"}, "auto").is_complete);
  CHECK(test::read_file(small.path("cut/metrics.jsonl")) == before);
}

TEST_CASE("run: two threads repeat bit for bit, also across a resume", "[train]") {
  const SmallRun small;
  small.train("whole", {"threads=2"});
  small.train("again", {"threads=2"});
  small.train("cut", {"threads=2", "steps=3"});
  small.train("cut", {"threads=2"}, "auto");
  for (const char* other : {"again", "cut"}) {
    INFO(other);
    CHECK(small.weights("whole", 6) == small.weights(other, 6));
    CHECK(small.values("whole", "train/gen_loss") == small.values(other, "train/gen_loss"));
  }
}

TEST_CASE("run: TensorBoard has the scalars and the pictures", "[train]") {
  const SmallRun small;
  small.train("r", {"validate_every=3", "preview_every=6"});
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(small.path("r/tensorboard"))) {
    files.push_back(entry.path().string());
  }
  REQUIRE(files.size() == 1);
  const std::string events = test::read_file(files[0]);
  for (const char* tag : {"train/gen_loss", "train/lr", "val/psnr", "samples"}) {
    INFO(tag);
    CHECK(events.find(tag) != std::string::npos);
  }
  const std::string png = test::read_file(small.path("r/samples/step_0000006.png"));
  CHECK(png.size() > 100);
  CHECK(events.find(png) != std::string::npos);
}

TEST_CASE("run: the best checkpoint stays beside the newest", "[train]") {
  const SmallRun small;
  // A learning rate that grows without end: the first validations are the best.
  small.train("r", {"validate_every=1", "checkpoint.every=1", "checkpoint.keep_last=1",
                    "checkpoint.keep_best=1", "loss.disc_weight=0", "optimizer.lr=1",
                    "schedule.kind=linear", "schedule.warmup_steps=6", "ema_decay=0"});
  const auto psnr = small.values("r", "val/psnr");
  REQUIRE(psnr.size() == 6);
  int64_t best = 1;
  for (const auto& [step, value] : psnr) {
    if (value > psnr.at(best)) best = step;
  }
  REQUIRE(best < 6);
  for (int64_t step = 1; step <= 6; ++step) {
    INFO("step " << step << ", best " << best);
    CHECK(fs::exists(small.path(str_cat("r/checkpoints/", checkpoint::step_name(step)))) ==
          (step == best || step == 6));
  }
}

TEST_CASE("run: a damaged checkpoint is passed over, the one before is used", "[train]") {
  const SmallRun small;
  small.train("whole");
  small.train("r", {"steps=4"});
  test::write_file(small.path("r/checkpoints/step_0000004/model.safetensors"), "cut short");
  small.train("r", {}, "auto");
  CHECK(small.weights("whole", 6) == small.weights("r", 6));
  CHECK(small.values("whole", "train/gen_loss") == small.values("r", "train/gen_loss"));
  CHECK_THAT(test::read_file(small.path("r/log.txt")), Catch::Contains("step_0000004"));
}

TEST_CASE("run: workers change nothing, the seed does", "[train]") {
  const SmallRun small;
  small.train("one", {"data.workers=1", "steps=3"});
  small.train("three", {"data.workers=3", "steps=3"});
  small.train("seed", {"seed=1", "steps=3"});
  CHECK(small.values("one", "train/gen_loss") == small.values("three", "train/gen_loss"));
  CHECK(small.values("one", "train/gen_loss") != small.values("seed", "train/gen_loss"));
}

TEST_CASE("run: low precisions train, fp16 counts the steps it skips", "[train]") {
  const SmallRun small;
  for (const std::string precision : {"bf16", "fp16"}) {
    INFO(precision);
    CHECK(small.train(precision, {"precision=" + precision}).is_complete);
    CHECK(small.values(precision, "train/gen_loss").at(6) <
          small.values(precision, "train/gen_loss").at(2) * 2);
  }
  CHECK(small.values("fp16", "train/loss_scale").size() == 6);
  CHECK(small.values("fp16", "train/skipped_steps").at(6) == 0);
}

TEST_CASE("run: fp16 steps that overflow are skipped and counted, also across a resume",
          "[train]") {
  const SmallRun small;
  const std::vector<std::string> overflowing = {"precision=fp16", "loss.disc_weight=0",
                                                "grad_scaler.initial_scale=1e38", "ema_decay=0"};
  auto first = overflowing;
  first.insert(first.end(), {"steps=2", "checkpoint.every=1"});
  CHECK(small.train("r", first).is_complete);
  CHECK(small.values("r", "train/skipped_steps").at(2) == 2);
  CHECK(small.values("r", "train/loss_scale").at(2) == Approx(0.25e38));
  // Nothing but buffers that count has changed.
  const auto one = io::load_state_dict(small.path("r/checkpoints/step_0000001/model.safetensors"));
  const auto two = io::load_state_dict(small.path("r/checkpoints/step_0000002/model.safetensors"));
  for (const auto& item : one.tensors) {
    if (item.name == "quantize.codebook_used") continue;
    INFO(item.name);
    const io::Array* other = two.find(item.name);
    REQUIRE(other != nullptr);
    CHECK(torch::equal(checkpoint::as_tensor(item.array), checkpoint::as_tensor(*other)));
  }
  CHECK(small.train("r", overflowing, "auto").is_complete);
  CHECK(small.values("r", "train/skipped_steps").at(6) == 6);
}

TEST_CASE("run: a loss that is not finite ends the run and names the way back", "[train]") {
  const SmallRun small;
  const std::string message = error_of([&] {
    small.train("r", {"optimizer.lr=1e25", "loss.disc_weight=0", "checkpoint.every=1"});
  });
  CHECK_THAT(message,
             Catch::Contains("step ") && (Catch::Contains("nan") || Catch::Contains("inf")));
  CHECK_THAT(message, Catch::Contains("_loss is") || Catch::Contains("grad_norm is"));
  CHECK_THAT(message, Catch::Contains("the last good checkpoint is " + small.path("r")));
  // What was saved is sound.
  const auto checkpoint = checkpoint::find_checkpoint(small.path("r"));
  for (const auto& item : io::load_state_dict(checkpoint.path).tensors) {
    INFO(item.name);
    CHECK(checkpoint::as_tensor(item.array).isfinite().all().item<bool>());
  }
}

TEST_CASE("run: begins with the weights it is given", "[train]") {
  const SmallRun small;
  small.train("first", {"steps=4"});
  const auto check_begun_with = [&](const std::string& weights, const std::string& init_from,
                                    const std::string& name) {
    INFO(init_from);
    small.train(name, {"steps=1", "optimizer.lr=0", "disc_optimizer.lr=0", "ema_decay=0",
                       "init_from=" + init_from});
    const auto first = io::load_state_dict(weights);
    const std::string file = fs::path(weights).filename().string();
    const auto second = io::load_state_dict(small.path(name + "/checkpoints/step_0000001/" + file));
    for (const auto& item : first.tensors) {
      if (item.name == "quantize.codebook_used") continue;  // counts on
      INFO(item.name);
      const io::Array* other = second.find(item.name);
      REQUIRE(other != nullptr);
      if (item.name.find("running_") != item.name.npos) continue;  // moves with each batch
      if (item.name.ends_with("num_batches_tracked")) continue;
      CHECK(torch::equal(checkpoint::as_tensor(item.array), checkpoint::as_tensor(*other)));
    }
  };
  const std::string run = small.path("first"), newest = run + "/checkpoints/step_0000004/";
  const std::string weights = newest + "model.safetensors";
  check_begun_with(weights, weights, "of_file");
  // A run folder has the discriminator too; it stands for its newest valid checkpoint.
  check_begun_with(weights, run, "of_run");
  check_begun_with(newest + "discriminator.safetensors", run + "/", "of_run_too");
  fs::remove(newest + "index.json");
  check_begun_with(run + "/checkpoints/step_0000002/model.safetensors", run, "of_older");
  for (const char* step : {"2", "4"}) {
    fs::remove_all(str_cat(run, "/checkpoints/step_000000", step));
  }
  CHECK_THAT(error_of([&] { small.train("of_none", {"init_from=" + run}); }),
             Catch::Contains(run + ": holds no valid checkpoint"));
  CHECK_FALSE(fs::exists(small.path("of_none")));
}

TEST_CASE("run: what cannot be trained is refused before anything is written", "[train]") {
  const SmallRun small;
  const auto refused = [&](const std::vector<std::string>& overrides) {
    const std::string message = error_of([&] { small.train("bad", overrides); });
    CHECK_FALSE(fs::exists(small.path("bad")));
    return message;
  };
  using Catch::Contains;
  CHECK_THAT(refused({"data.image_size=17"}), Contains("17") && Contains("multiple of 2"));
  CHECK_THAT(refused({"data.workers=0"}), Contains("data.workers") && Contains("from 1 to"));
  CHECK_THAT(refused({"modl.ch=32"}), Contains("modl") && Contains("model"));
  CHECK_THAT(refused({"epochs=2"}), Contains("epochs is 2"));
  CHECK_THAT(refused({"global_batch_size=3", "grad_accum_steps=2"}), Contains("4 would"));
  CHECK_THAT(refused({"loss.perceptual_weight=1"}), Contains("lpips.vgg"));
  CHECK_THAT(refused({"model.ch=24"}), Contains("model.ch"));
  CHECK_THAT(refused({"data.train.path=/no/such"}), Contains("/no/such"));
  CHECK_THAT(refused({"device=tpu"}), Contains("tpu"));
  CHECK_THAT(refused({"task=poetry"}), Contains("poetry") && Contains("tokenizer"));
  CHECK_THAT(refused({"init_from=/no/such.pt"}), Contains("/no/such.pt"));

  small.train("r", {"steps=2"});
  const std::string before = small.weights("r", 2);
  CHECK_THAT(error_of([&] { small.train("r", {"steps=2"}); }), Contains("--resume auto"));
  CHECK_THAT(error_of([&] { small.train("r", {"model.ch=64"}, "auto"); }), Contains("conv_in"));
  CHECK(small.weights("r", 2) == before);
}

TEST_CASE("run: every config that comes with the project resolves", "[train]") {
  int count = 0;
  for (const auto& entry : fs::recursive_directory_iterator(test::project_path("configs"))) {
    const std::string path = entry.path().string();
    if (!path.ends_with(".yaml") || path.ends_with("/recipe.yaml")) continue;
    INFO(path);
    CHECK_THAT(resolved_config({path, {}, "", "never"}), Catch::Contains("global_batch_size"));
    ++count;
  }
  CHECK(count >= 12);
}

// LlamaGen's published runs (arXiv:2406.06525, section 3.2; train_c2i.py).
TEST_CASE("run: the configs of the published GPTs have the published values", "[train]") {
  struct Row {
    const char* file;
    const char* size;
    int64_t image_size;
  };
  for (const Row& row : {Row{"b-256", "B", 256}, Row{"b-384", "B", 384}, Row{"l-256", "L", 256},
                         Row{"l-384", "L", 384}, Row{"xl-384", "XL", 384},
                         Row{"xxl-384", "XXL", 384}, Row{"3b-384", "3B", 384}}) {
    INFO(row.file);
    const std::string path = test::project_path(str_cat("configs/gpt/", row.file, ".yaml"));
    const auto config = load_config<GptRunConfig>(path);
    gpt::GptConfig model = gpt::gpt_size(row.size);
    model.block_size = (row.image_size / 16) * (row.image_size / 16);
    CHECK(dump_config(config.model) == dump_config(model));
    CHECK(model.token_dropout_p == 0.1);
    CHECK(model.resid_dropout_p == 0.1);
    CHECK(model.ffn_dropout_p == 0.1);
    CHECK(model.class_dropout_prob == 0.1);
    CHECK(config.run.task == "gpt");
    CHECK(config.run.epochs == 300);
    CHECK(config.run.steps == 0);
    CHECK(config.run.global_batch_size == 256);
    CHECK(config.run.max_grad_norm == 1);
    CHECK(config.run.precision == "bf16");
    CHECK(config.run.schedule.kind == "constant");
    CHECK(config.run.schedule.warmup_steps == 0);
    CHECK(config.run.schedule.warmup_epochs == 0);
    CHECK(config.optimizer.kind == "adamw");
    CHECK(config.optimizer.lr == 1e-4);
    CHECK(config.optimizer.beta1 == 0.9);
    CHECK(config.optimizer.beta2 == 0.95);
    CHECK(config.optimizer.eps == 1e-8);
    CHECK(config.optimizer.weight_decay == 0.05);
    CHECK(config.optimizer.decay_min_dims == 2);
    CHECK(config.data.train == str_cat("codes/imagenet", row.image_size, "-train"));
  }
}

// VAR's published runs (its README; train.py's defaults). The rate is tblr * batch size / 256.
TEST_CASE("run: the configs of the published VARs have the published values", "[train]") {
  struct Row {
    const char* file;
    const char* size;
    int64_t image_size, batch_size, epochs;
    double base_lr, last_weight_decay, warmup_epochs, final_ratio, gamma;
  };
  for (const Row& row : {Row{"d16-256", "d16", 256, 768, 200, 1e-4, 0.05, 4, 0.1, 1e-3},
                         Row{"d20-256", "d20", 256, 768, 250, 1e-4, 0.05, 5, 0.1, 1e-3},
                         Row{"d24-256", "d24", 256, 768, 350, 8e-5, 0.05, 7, 0.01, 1e-4},
                         Row{"d30-256", "d30", 256, 1024, 350, 8e-5, 0.08, 7, 0.01, 1e-5},
                         Row{"d36s-512", "d36-s", 512, 768, 350, 8e-5, 0.08, 7, 0.01, 5e-6}}) {
    INFO(row.file);
    const std::string path = test::project_path(str_cat("configs/var/", row.file, ".yaml"));
    const auto config = load_config<VarRunConfig>(path);
    var::VarConfig model = var::var_size(row.size);
    model.init_adaln_gamma = row.gamma;
    CHECK(dump_config(config.model) == dump_config(model));
    CHECK(model.class_dropout_prob == 0.1);
    CHECK(model.max_drop_path() == Approx(0.1 * static_cast<double>(model.depth) / 24));
    CHECK(config.run.task == "var");
    CHECK(config.run.epochs == row.epochs);
    CHECK(config.run.steps == 0);
    CHECK(config.run.global_batch_size == row.batch_size);
    CHECK(config.run.max_grad_norm == 2);
    CHECK(config.run.precision == "fp16");
    CHECK(config.optimizer.kind == "adamw");
    CHECK(config.optimizer.lr ==
          Approx(row.base_lr * static_cast<double>(row.batch_size) / 256).epsilon(1e-9));
    CHECK(config.optimizer.beta1 == 0.9);
    CHECK(config.optimizer.beta2 == 0.95);
    CHECK(config.optimizer.eps == 1e-8);
    CHECK(config.optimizer.weight_decay == 0.05);
    const ScheduleConfig& schedule = config.run.schedule;
    CHECK(schedule.kind == "lin0");
    CHECK(schedule.warmup_epochs == row.warmup_epochs);
    CHECK(schedule.warmup_start == 0.005);
    CHECK(schedule.final_ratio == row.final_ratio);
    CHECK(0.05 * schedule.weight_decay_final_ratio == Approx(row.last_weight_decay).epsilon(1e-9));
    CHECK(config.label_smoothing == 0);
    CHECK(config.images.image_size == row.image_size);
    CHECK(config.images.flip_prob == 0);
  }
}

}  // namespace
}  // namespace vgen::train
