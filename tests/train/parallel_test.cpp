// The same training under every strategy, on ranks that are threads: the losses of one process with
// the same global batch.

#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <map>
#include <mutex>

#include "codes/codes_support.h"
#include "support/golden.h"
#include "support/ranks.h"
#include "support/support.h"
#include "vgen/core/random.h"
#include "vgen/core/strings.h"
#include "vgen/data/image.h"
#include "vgen/train/trainer.h"

namespace vgen::train {
namespace {

using Losses = std::map<std::string, std::vector<double>>;  // of each step, by term
constexpr int kSteps = 20;

/// Codes and pictures that the configs below train on.
class Data {
 public:
  Data() {
    const codes::CodeInfo info{.tokenizer = "",
                               .codebook_size = 64,
                               .image_size = 64,
                               .grid = {4, 4},
                               .patch_nums = {},
                               .crop_sets = {codes::parse_crop_set("center_flip")},
                               .precision = "fp32",
                               .classes = {"c0", "c1", "c2"}};
    test::write_codes(dir_ / "codes", info, 40, 16);
    codes::CodeInfo scales = info;
    scales.patch_nums = {1, 2, 3, 4};
    test::write_codes(dir_ / "scales", scales, 40, 16);
    std::filesystem::create_directories(dir_ / "pictures/a");
    for (int64_t i = 0; i < 24; ++i) {
      data::Image image{.width = 20, .height = 18, .rgb = data::Pixels(20 * 18 * 3)};
      Rng rng(1, Purpose::kTest, 0, static_cast<uint64_t>(i));
      for (auto& value : image.rgb) value = static_cast<uint8_t>(rng.below(256));
      const auto png = data::encode_png(image);
      test::write_file(dir_ / str_cat("pictures/a/", i, ".png"),
                       {reinterpret_cast<const char*>(png.data()), png.size()});
    }
  }

  std::string gpt() const {
    return str_cat(common(),
                   "task: gpt\nmodel: {vocab_size: 64, block_size: 16, n_layer: 3, n_head: 2, dim: "
                   "40, multiple_of: 20, num_classes: 3, class_dropout_prob: 0.3, "
                   "token_dropout_p: 0, resid_dropout_p: 0, ffn_dropout_p: 0}\n"
                   "preview: {num_images: 0}\noptimizer: {kind: adamw, lr: 3e-3, decay_min_dims: "
                   "2, weight_decay: 0.1}\ndata: {train: ",
                   dir_ / "codes", "}\n");
  }
  std::string var() const {
    return str_cat(common(),
                   "task: var\nmodel: {depth: 3, dim: 36, n_head: 2, patch_nums: [1, 2, 3, 4], "
                   "num_classes: 3, codebook_size: 64, z_channels: 16, class_dropout_prob: 0.3, "
                   "drop_path_rate: 0, init_adaln_gamma: 0.5}\ntokenizer: {path: ",
                   test::golden("var_vae/vae.pth"),
                   "}\npreview: {num_images: 0}\noptimizer: {lr: 3e-3}\ndata: {train: ",
                   dir_ / "scales", "}\n");
  }
  std::string tokenizer() const {
    return str_cat(common(),
                   "task: tokenizer\nmodel: {ch: 32, num_res_blocks: 1, encoder_ch_mult: [1, 1], "
                   "decoder_ch_mult: [1, 1], z_channels: 8, codebook_size: 64}\n"
                   "loss: {perceptual_weight: 0, disc_dim: 8, disc_num_layers: 1, disc_start: 4, "
                   "disc_adaptive_weight: true}\n"
                   "data: {image_size: 16, workers: 1, train: {path: ",
                   dir_ / "pictures", "}}\n");
  }

 private:
  static std::string common() {
    return str_cat("steps: ", static_cast<int64_t>(kSteps),
                   "\nglobal_batch_size: 8\nprecision: fp32\nthreads: 1\nema_decay: 0.9\n");
  }
  test::TempDir dir_;
};

/// Trains on this rank; the terms of every step.
Losses train(const std::string& yaml, std::unique_ptr<dist::Group> group) {
  static std::mutex one_at_a_time;  // LibTorch's generator is one for all threads
  const RunPlan plan = plan_run(parse_yaml(yaml, "test"));
  const auto strategy =
      dist::make_strategy(plan.run.parallel, std::move(group), torch::kFloat32, 2);
  const int64_t ranks = strategy->world_size();
  std::unique_ptr<Task> task;
  {
    const std::lock_guard lock(one_at_a_time);
    torch::manual_seed(7);
    task = plan.make_task({.rank = strategy->rank(),
                           .world_size = ranks,
                           .micro_batch_size = micro_batch_size(plan.run, ranks),
                           .seed = 3,
                           .group = ranks > 1 ? &strategy->group() : nullptr});
  }
  Trainer trainer(plan.run, *task, *strategy, torch::kCPU);
  Losses losses;
  for (int step = 0; step < kSteps; ++step) {
    for (const auto& [name, value] : trainer.step()) losses[name].push_back(value.item<double>());
  }
  strategy->group().barrier();
  return losses;
}

void check_strategies(const std::string& yaml) {
  const Losses expected = train(yaml, dist::Group::alone());
  CHECK(expected.at("loss").front() != expected.at("loss").back());
  const int64_t ranks = GENERATE(2, 4);
  const std::string strategy = GENERATE("ddp", "zero1", "fsdp", "hsdp");
  const int64_t micro_batches = GENERATE(1, 2);
  INFO(ranks << " ranks, " << strategy << ", " << micro_batches << " micro-batches");
  std::vector<Losses> found(static_cast<size_t>(ranks));
  test::run_ranks(ranks, [&](std::unique_ptr<dist::Group> group) {
    const auto rank = static_cast<size_t>(group->rank());
    found[rank] = train(
        str_cat(yaml, "grad_accum_steps: ", micro_batches, "\nparallel: {strategy: ", strategy,
                ", activation_checkpointing: ", micro_batches == 2, "}\n"),
        std::move(group));
  });
  for (const auto& [name, values] : expected) {
    INFO(name);
    CHECK(found[0].at(name) == found.back().at(name));
    for (size_t step = 0; step < values.size(); ++step) {
      INFO("step " << step + 1);
      CHECK(found[0].at(name)[step] == Approx(values[step]).epsilon(1e-5).margin(1e-6));
    }
  }
}

TEST_CASE("strategies: the GPT learns as in one process", "[train][dist]") {
  const Data data;
  check_strategies(data.gpt());
}

TEST_CASE("strategies: VAR learns as in one process", "[train][dist]") {
  const Data data;
  check_strategies(data.var());
}

}  // namespace
}  // namespace vgen::train
