// The same training under every strategy, on ranks that are threads: the losses of one process with
// the same global batch.

#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <map>
#include <mutex>

#include "codes/codes_support.h"
#include "support/golden.h"
#include "support/pictures.h"
#include "support/ranks.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/core/random.h"
#include "vgen/core/strings.h"
#include "vgen/data/image.h"
#include "vgen/tensor/device.h"
#include "vgen/tensor/tf32.h"
#include "vgen/train/trainer.h"

namespace vgen::train {
namespace {

using Losses = std::map<std::string, std::vector<double>>;  // of each step, by term
constexpr int kSteps = 20;

/// Codes and pictures that the configs below train on.
class Data {
 public:
  Data() {
    const codes::CodeInfo info = test::square_info(64);
    test::write_codes(dir_ / "codes", info, 40, 16);
    test::write_codes(dir_ / "val_codes", info, 21, 16);
    codes::CodeInfo scales = info;
    scales.patch_nums = {1, 2, 3, 4};
    test::write_codes(dir_ / "scales", scales, 40, 16);
    test::write_codes(dir_ / "val_scales", scales, 21, 16);
    for (int64_t i = 0; i < 24; ++i) {
      test::write_picture(dir_ / str_cat("pictures/a/", i, ".png"), test::noise_picture(20, 18, i));
    }
  }

  std::string gpt() const {
    return str_cat(common(),
                   "task: gpt\nmodel: {vocab_size: 64, block_size: 16, n_layer: 3, n_head: 2, dim: "
                   "40, multiple_of: 20, num_classes: 3, class_dropout_prob: 0.3, "
                   "token_dropout_p: 0, resid_dropout_p: 0, ffn_dropout_p: 0}\n"
                   "preview: {num_images: 0}\noptimizer: {kind: adamw, lr: 3e-3, decay_min_dims: "
                   "2, weight_decay: 0.1}\ndata: {train: ",
                   dir_ / "codes", ", val: ", dir_ / "val_codes", "}\n");
  }
  std::string var() const {
    return str_cat(common(),
                   "task: var\nmodel: {depth: 3, dim: 36, n_head: 2, patch_nums: [1, 2, 3, 4], "
                   "num_classes: 3, codebook_size: 64, z_channels: 16, class_dropout_prob: 0.3, "
                   "drop_path_rate: 0, init_adaln_gamma: 0.5}\ntokenizer: {path: ",
                   test::golden("var_vae/vae.pth"),
                   "}\npreview: {num_images: 0}\noptimizer: {lr: 3e-3}\ndata: {train: ",
                   dir_ / "scales", ", val: ", dir_ / "val_scales", "}\n");
  }
  /// Sizes that no number of ranks divides, a batch norm that sees few pixels of a rank, codes that
  /// nobody uses. The nearest code is found by comparing, so rounding must stay small: a large eps
  /// keeps Adam from making steps of it where the gradient is zero, as in front of a norm, and the
  /// entropy loss, which divides by its temperature of 0.01, counts little.
  std::string tokenizer() const {
    return str_cat(
        common(),
        "task: tokenizer\nmodel: {ch: 32, num_res_blocks: 1, encoder_ch_mult: [1, 1, 1], "
        "decoder_ch_mult: [1, 1, 1], z_channels: 6, codebook_size: 21, "
        "codebook_embed_dim: 5, entropy_loss_ratio: 1e-4}\n"
        "loss: {perceptual_weight: 0, disc_dim: 6, disc_num_layers: 2, disc_start: 4, "
        "disc_weight: 0.1, disc_adaptive_weight: true}\n",
        optimizers(), "data: {image_size: 16, workers: 1, train: {path: ", dir_ / "pictures",
        "}, val: {path: ", dir_ / "pictures", "}}\n");
  }
  std::string var_tokenizer() const {
    return str_cat(common(),
                   "task: var_tokenizer\nmodel: {ch: 32, num_res_blocks: 1, ch_mult: [1, 1, 1], "
                   "z_channels: 6, codebook_size: 21, patch_nums: [1, 2, 4]}\n"
                   "codebook: {reseed_every: 3, scale_dropout: 0.3}\n"
                   "loss: {perceptual_weight: 0, disc_dim: 6, disc_num_layers: 2, disc_start: 12, "
                   "disc_weight: 0.1}\n",
                   optimizers(),
                   "data: {image_size: 16, workers: 1, train: {path: ", dir_ / "pictures",
                   "}, val: {path: ", dir_ / "pictures", "}}\n");
  }
  /// Few images of the least size: whatever the model, this discriminator is 512 channels wide.
  std::string stylegan() const {
    return str_cat(
        "steps: 3\nglobal_batch_size: 4\nprecision: fp32\nthreads: 1\n"
        "task: tokenizer\nmodel: {ch: 32, num_res_blocks: 1, encoder_ch_mult: [1, 1], "
        "decoder_ch_mult: [1, 1], z_channels: 6, codebook_size: 21}\n"
        "loss: {perceptual_weight: 0, disc_type: stylegan, disc_start: 1, "
        "disc_weight: 0.01, disc_adaptive_weight: true}\noptimizer: {lr: 1e-4, eps: 1e-3}\n"
        "disc_optimizer: {lr: 1e-5, eps: 1e-3}\n",
        "data: {image_size: 8, workers: 1, train: {path: ", dir_ / "pictures", "}}\n");
  }

 private:
  static std::string common() {
    return str_cat("steps: ", static_cast<int64_t>(kSteps),
                   "\nglobal_batch_size: 8\nprecision: fp32\nthreads: 1\nema_decay: 0.9\n");
  }
  static std::string optimizers() {
    return "optimizer: {lr: 5e-4, eps: 1e-3}\ndisc_optimizer: {lr: 5e-4, eps: 1e-3}\n";
  }
  test::TempDir dir_;
};

/// Trains on this rank; the terms of every step, and those of a validation after the last one.
Losses train(const std::string& yaml, std::unique_ptr<dist::Group> group,
             c10::DeviceType device = c10::kCPU) {
  static std::mutex one_at_a_time;  // LibTorch's generator is one for all threads
  const RunPlan plan = plan_run(parse_yaml(yaml, "test"));
  const c10::ScalarType precision = parse_precision(plan.run.precision);
  const auto strategy = dist::make_strategy(plan.run.parallel, std::move(group), precision, 2);
  const int64_t ranks = strategy->world_size();
  const c10::Device own =
      device == c10::kCPU ? c10::Device(device)
                          : c10::Device(device, static_cast<c10::DeviceIndex>(strategy->rank()));
  std::unique_ptr<Task> task;
  {
    const std::lock_guard lock(one_at_a_time);
    torch::manual_seed(7);
    task = plan.make_task({.device = own,
                           .precision = precision,
                           .rank = strategy->rank(),
                           .world_size = ranks,
                           .micro_batch_size = micro_batch_size(plan.run, ranks),
                           .seed = 3,
                           .group = ranks > 1 ? &strategy->group() : nullptr});
  }
  Trainer trainer(plan.run, *task, *strategy, own);
  Losses losses;
  for (int64_t step = 0; step < plan.run.steps; ++step) {
    for (const auto& [name, value] : trainer.step()) losses[name].push_back(value.item<double>());
    if (precision == torch::kHalf) {
      losses["loss_scale"].push_back(trainer.scalers()[0]->current_scale());
    }
  }
  {
    const Trainer::Average average(trainer);
    strategy->begin();
    const BlockRunnerGuard guard(strategy->runner());
    for (const auto& [name, value] : task->validate()) {
      losses[str_cat("val/", name)].push_back(value);
    }
    strategy->end();
  }
  if (yaml.find("num_images: 2") != std::string::npos) {
    const auto whole = strategy->whole();
    const auto picture = task->preview();
    if (picture) losses["preview"].push_back(picture->to(torch::kFloat).mean().item<double>());
  }
  strategy->group().barrier();
  return losses;
}

/// All ranks have the same, near `expected`; `ratios` bounds the error of norms of gradients.
void check_near(const std::vector<Losses>& found, const Losses& expected, double ratios,
                double bound = 1e-5) {
  for (const auto& [name, values] : expected) {
    INFO(name);
    CHECK(found[0].at(name) == found.back().at(name));
    const bool is_ratio = name.ends_with("grad_norm") || name == "disc_adaptive_weight";
    // Means of logits of order 1 pass through zero.
    const bool is_signed = name.starts_with("logits_") || name == "gen_adv_loss";
    for (size_t step = 0; step < values.size(); ++step) {
      INFO("step " << step + 1);
      CHECK(found[0].at(name)[step] == Approx(values[step])
                                           .epsilon(is_ratio ? ratios : bound)
                                           .margin(is_signed ? bound : bound / 10));
    }
  }
}

/// What every rank has of `yaml` under a strategy.
std::vector<Losses> train_on(int64_t ranks, const std::string& yaml, const std::string& strategy,
                             bool is_checkpointed, c10::DeviceType device = c10::kCPU) {
  std::vector<Losses> found(static_cast<size_t>(ranks));
  test::run_ranks(
      ranks,
      [&](std::unique_ptr<dist::Group> group) {
        const auto rank = static_cast<size_t>(group->rank());
        found[rank] = train(str_cat(yaml, "parallel: {strategy: ", strategy,
                                    ", activation_checkpointing: ", is_checkpointed, "}\n"),
                            std::move(group), device);
      },
      device);
  return found;
}

/// Of one process; each config is trained once.
const Losses& expected_losses(const std::string& yaml) {
  static std::map<std::string, Losses> known;
  const auto found = known.find(yaml);
  return found != known.end()
             ? found->second
             : known.emplace(yaml, train(yaml, dist::Group::alone())).first->second;
}

/// `loss` names the term that has to change.
void check_strategies(const std::string& config, const std::string& loss, double ratios = 1e-5) {
  const int64_t ranks = GENERATE(2, 4);
  const std::string strategy = GENERATE("ddp", "zero1", "fsdp", "hsdp");
  const int64_t micro_batches = GENERATE(1, 2);
  INFO(ranks << " ranks, " << strategy << ", " << micro_batches << " micro-batches");
  const std::string yaml = str_cat(config, "grad_accum_steps: ", micro_batches, "\n");
  const Losses& expected = expected_losses(yaml);
  CHECK(expected.at(loss).front() != expected.at(loss).back());
  check_near(train_on(ranks, yaml, strategy, /*is_checkpointed=*/micro_batches == 2), expected,
             ratios);
}

const Data& small_data() {
  static const Data data;
  return data;
}

/// Every config with the term that has to change.
std::vector<std::pair<std::string, std::string>> all_trainings() {
  return {{small_data().gpt(), "loss"},
          {small_data().var(), "loss"},
          {small_data().tokenizer(), "gen_loss"},
          {small_data().var_tokenizer(), "gen_loss"}};
}

TEST_CASE("strategies: the GPT learns as in one process", "[train][dist]") {
  check_strategies(small_data().gpt(), "loss");
}

TEST_CASE("strategies: VAR learns as in one process", "[train][dist]") {
  check_strategies(small_data().var(), "loss");
}

TEST_CASE("strategies: the tokenizer learns as in one process", "[train][dist]") {
  check_strategies(small_data().tokenizer(), "gen_loss", 1e-4);
}

TEST_CASE("strategies: VAR's tokenizer learns as in one process", "[train][dist]") {
  check_strategies(small_data().var_tokenizer(), "gen_loss", 1e-4);
  CHECK(expected_losses(str_cat(small_data().var_tokenizer(), "grad_accum_steps: 1\n"))
            .at("reseeded_codes")[2] > 0);
}

TEST_CASE("strategies: on CUDA devices all learn as in one process, and that as the CPU does",
          "[train][dist][cuda]") {
  if (test::lacks_cuda()) return;
  allow_tf32(false);
  // A device belongs to one rank: a single one leaves NCCL nothing to send.
  const int64_t ranks = std::min<int64_t>(4, num_cuda_devices());
  for (const auto& [config, loss] : all_trainings()) {
    INFO(config);
    const std::string yaml = str_cat(config, "grad_accum_steps: 2\n");
    const Losses alone = train(yaml, dist::Group::alone(), c10::kCUDA);
    CHECK(alone.at(loss).front() == Approx(expected_losses(yaml).at(loss).front()).epsilon(1e-4));
    CHECK(alone.at(loss).back() == Approx(expected_losses(yaml).at(loss).back()).epsilon(0.01));
    for (const std::string strategy : {"ddp", "zero1", "fsdp", "hsdp"}) {
      for (const bool is_checkpointed : {false, true}) {
        INFO(strategy << " of " << ranks << ", blocks compute twice: " << is_checkpointed);
        check_near(train_on(ranks, yaml, strategy, is_checkpointed, c10::kCUDA), alone, 1e-3, 1e-4);
      }
    }
  }
}

TEST_CASE("strategies: StyleGAN's discriminator learns as in one process", "[train][dist]") {
  const Losses& expected = expected_losses(small_data().stylegan());
  check_near(train_on(2, small_data().stylegan(), "ddp", /*is_checkpointed=*/true), expected, 1e-4);
  check_near(train_on(2, small_data().stylegan(), "fsdp", /*is_checkpointed=*/false), expected,
             1e-4);
  check_near(train_on(2, small_data().stylegan(), "fsdp", /*is_checkpointed=*/true), expected,
             1e-4);
}

std::string replaced(std::string text, const std::string& before, const std::string& now) {
  return text.replace(text.find(before), before.size(), now);
}

TEST_CASE("strategies: in bf16, weights are in it where the model can take them", "[train][dist]") {
  for (const auto& [config, loss] : all_trainings()) {
    std::string yaml = replaced(config, "fp32", "bf16");
    if (loss == "loss" && config.find("task: var") != std::string::npos) {
      yaml = replaced(yaml, "preview: {num_images: 0}", "preview: {num_images: 2}");
    }
    INFO(yaml);
    const double expected = expected_losses(yaml).at(loss)[0];
    const auto found = train_on(2, yaml, "fsdp", /*is_checkpointed=*/false);
    CHECK(found[0].at(loss)[0] == Approx(expected).epsilon(0.02));
    CHECK(std::isfinite(found[0].at(loss).back()));
    CHECK(found[0].at(loss) == found[1].at(loss));
    CHECK(found[0].contains("preview") == (yaml.find("num_images: 2") != std::string::npos));
  }
}

TEST_CASE("strategies: in fp16 a step that overflows on a rank is left out by all",
          "[train][dist]") {
  const std::string yaml = replaced(small_data().gpt(), "fp32", "fp16") +
                           "grad_scaler: {initial_scale: 1e8, growth_interval: 1000}\n";
  for (const std::string strategy : {"ddp", "zero1", "fsdp"}) {
    INFO(strategy);
    const auto found = train_on(2, yaml, strategy, /*is_checkpointed=*/false);
    const auto& scales = found[0].at("loss_scale");
    CHECK(scales.front() < 1e8);  // it overflowed
    CHECK(scales.back() == scales[scales.size() - 2]);
    CHECK(found[1].at("loss_scale") == scales);
    CHECK(found[0].at("loss") == found[1].at("loss"));
    CHECK(found[0].at("loss").back() < found[0].at("loss").front());
    CHECK(std::isfinite(found[0].at("val/loss")[0]));
  }
}

}  // namespace
}  // namespace vgen::train
