// Runs that go on with another number of ranks and another strategy, and steps while a checkpoint
// is written. Ranks are threads.

#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <future>
#include <map>
#include <mutex>
#include <optional>

#include "codes/codes_support.h"
#include "support/golden.h"
#include "support/pictures.h"
#include "support/ranks.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/core/random.h"
#include "vgen/core/strings.h"
#include "vgen/data/image.h"
#include "vgen/tensor/deferred_init.h"
#include "vgen/tensor/device.h"
#include "vgen/tensor/tf32.h"
#include "vgen/train/trainer.h"

namespace vgen::train {
namespace {

using GroupPtr = std::unique_ptr<dist::Group>;

/// A GPT on `num_images` images of random codes.
std::string config(const test::TempDir& dir, int64_t num_images, int64_t batch_size) {
  test::write_codes(dir / "codes", test::square_info(64), num_images, 16);
  return str_cat("task: gpt\nsteps: 100\nprecision: fp32\nthreads: 1\nema_decay: 0.9\n",
                 "global_batch_size: ", batch_size,
                 "\nmodel: {vocab_size: 64, block_size: 16, n_layer: 2, n_head: 2, dim: 40, "
                 "multiple_of: 20, num_classes: 3, class_dropout_prob: 0.3, token_dropout_p: 0, "
                 "resid_dropout_p: 0, ffn_dropout_p: 0}\npreview: {num_images: 0}\n"
                 "optimizer: {kind: adamw, lr: 3e-3, weight_decay: 0.1}\ndata: {train: ",
                 dir / "codes", "}\n");
}

/// A VAR on codes of four scales.
std::string var_config(const test::TempDir& dir, int64_t batch_size) {
  codes::CodeInfo info = test::square_info(64);
  info.patch_nums = {1, 2, 3, 4};
  test::write_codes(dir / "scales", info, 40, 16);
  return str_cat(
      "task: var\nsteps: 100\nprecision: fp32\nthreads: 1\nglobal_batch_size: ", batch_size,
      "\nmodel: {depth: 3, dim: 36, n_head: 2, patch_nums: [1, 2, 3, 4], num_classes: 3, "
      "codebook_size: 64, z_channels: 16, class_dropout_prob: 0.3, drop_path_rate: 0, "
      "init_adaln_gamma: 0.5}\ntokenizer: {path: ",
      test::golden("var_vae/vae.pth"),
      "}\npreview: {num_images: 0}\noptimizer: {lr: 3e-3}\ndata: {train: ", dir / "scales", "}\n");
}

/// A tokenizer whose discriminator begins in the third step, as in parallel_test.cpp.
std::string tokenizer_config(const test::TempDir& dir, int64_t batch_size) {
  for (int64_t i = 0; i < 24; ++i) {
    test::write_picture(dir / str_cat("pictures/a/", i, ".png"), test::noise_picture(20, 18, i));
  }
  return str_cat(
      "task: tokenizer\nsteps: 100\nprecision: fp32\nthreads: 1\nglobal_batch_size: ", batch_size,
      "\nmodel: {ch: 32, num_res_blocks: 1, encoder_ch_mult: [1, 1, 1], "
      "decoder_ch_mult: [1, 1, 1], z_channels: 6, codebook_size: 21, "
      "codebook_embed_dim: 5, entropy_loss_ratio: 1e-4}\n"
      "loss: {perceptual_weight: 0, disc_dim: 6, disc_num_layers: 2, disc_start: 2, "
      "disc_weight: 0.1, disc_adaptive_weight: true}\n"
      "optimizer: {lr: 5e-4, eps: 1e-3}\ndisc_optimizer: {lr: 5e-4, eps: 1e-3}\n"
      "data: {image_size: 16, workers: 1, train: {path: ",
      dir / "pictures", "}}\n");
}

using Terms = std::map<std::string, double>;  // of a step

/// One rank's trainer and all that it needs.
struct Rank {
  Rank(const std::string& yaml, const std::string& strategy_name, GroupPtr group,
       c10::DeviceType type = c10::kCPU, const std::string& host = dist::host_id())
      : plan(plan_run(
            parse_yaml(str_cat(yaml, "parallel: {strategy: ", strategy_name, "}\n"), "test"))),
        strategy(
            dist::make_strategy(plan.run.parallel, std::move(group), torch::kFloat32, 2, host)) {
    static std::mutex one_at_a_time;  // LibTorch's generator is one for all threads
    const int64_t ranks = strategy->world_size();
    const c10::Device device =
        type == c10::kCPU ? c10::Device(type)
                          : c10::Device(type, static_cast<c10::DeviceIndex>(strategy->rank()));
    std::optional<DeferredInit> deferred;  // as a run does
    if (strategy->is_sharded()) deferred.emplace();
    {
      const std::lock_guard lock(one_at_a_time);
      torch::manual_seed(7);
      task = plan.make_task({.device = device,
                             .rank = strategy->rank(),
                             .world_size = ranks,
                             .micro_batch_size = micro_batch_size(plan.run, ranks),
                             .seed = 3,
                             .group = ranks > 1 ? &strategy->group() : nullptr});
    }
    trainer = std::make_unique<Trainer>(plan.run, *task, *strategy, device);
  }
  /// A step; all its terms, those of the discriminator too.
  Terms step() {
    Terms terms;
    for (const auto& [name, value] : trainer->step()) terms[name] = value.item<double>();
    return terms;
  }

  RunPlan plan;
  std::unique_ptr<dist::Strategy> strategy;
  std::unique_ptr<Task> task;
  std::unique_ptr<Trainer> trainer;
};

/// A part of a run: some ranks go on from the checkpoint before, if it is not the first part.
struct Part {
  std::string strategy;
  int64_t ranks = 1;
  int64_t steps = 4;
  std::vector<std::string> hosts = {};  ///< of each rank; none: this one
};

/// The terms of every step.
std::vector<Terms> train_terms(const std::string& yaml, const std::string& run,
                               const std::vector<Part>& parts, c10::DeviceType device = c10::kCPU) {
  std::vector<Terms> losses;
  for (const Part& part : parts) {
    const bool is_first = losses.empty();
    const auto body = [&](GroupPtr group) {
      const auto number = static_cast<size_t>(group->rank());
      Rank rank(yaml, part.strategy, std::move(group), device,
                part.hosts.empty() ? dist::host_id() : part.hosts[number]);
      dist::Group& all = rank.strategy->group();
      if (!is_first) rank.trainer->restore(checkpoint::find_checkpoint(run, all));
      for (int64_t i = 0; i < part.steps; ++i) {
        Terms terms = rank.step();
        if (all.rank() == 0) losses.push_back(std::move(terms));
      }
      checkpoint::CheckpointStore(run + "/checkpoints", {}, &all).save(rank.trainer->snapshot());
      all.barrier();
    };
    if (part.ranks == 1 && device == c10::kCPU) {
      body(dist::Group::alone());
    } else {
      test::run_ranks(part.ranks, body, device);
    }
  }
  return losses;
}

/// The loss of every step.
std::vector<double> train(const std::string& yaml, const std::string& run,
                          const std::vector<Part>& parts) {
  std::vector<double> losses;
  for (const auto& terms : train_terms(yaml, run, parts)) losses.push_back(terms.at("loss"));
  return losses;
}

void check_equal_terms(const std::vector<Terms>& found, const std::vector<Terms>& expected,
                       double bound) {
  REQUIRE(found.size() == expected.size());
  for (size_t step = 0; step < expected.size(); ++step) {
    for (const auto& [name, value] : expected[step]) {
      INFO("step " << step + 1 << ": " << name);
      CHECK(found[step].at(name) == Approx(value).epsilon(bound).margin(bound));
    }
  }
}

TEST_CASE("resharding: VAR, and a tokenizer with its discriminator, through every strategy",
          "[train][dist]") {
  const bool is_var = GENERATE(true, false);
  CAPTURE(is_var);
  const test::TempDir dir;
  const std::string yaml = is_var ? var_config(dir, 12) : tokenizer_config(dir, 12);
  const auto expected = train_terms(yaml, dir / "one", {{"none", 1, 8}});
  const auto found = train_terms(
      yaml, dir / "r",
      {{"fsdp", 4, 3}, {"zero1", 3, 2}, {"none", 1, 1}, {"zero1", 2, 1}, {"hsdp", 2, 1}});
  check_equal_terms(found, expected, 1e-5);
  if (!is_var) CHECK(expected.back().at("disc_loss") > 0);  // it has begun
}

TEST_CASE("resharding: fsdp of 4, ddp of 1, fsdp of 3 are one run", "[train][dist]") {
  const test::TempDir dir;
  const std::string yaml = config(dir, 40, 12);
  const auto expected = train(yaml, dir / "one", {{"none", 1, 13}});
  // The parts end in the middle of an epoch, which has three steps.
  const auto found =
      train(yaml, dir / "r", {{"fsdp", 4, 4}, {"ddp", 1, 4}, {"fsdp", 3, 3}, {"hsdp", 2, 2}});
  REQUIRE(found.size() == expected.size());
  for (size_t step = 0; step < expected.size(); ++step) {
    INFO("step " << step + 1);
    CHECK(found[step] == Approx(expected[step]).epsilon(1e-5));
  }
}

TEST_CASE("resharding: hsdp whose ranks are numbered across the hosts", "[train][dist]") {
  const test::TempDir dir;
  const std::string yaml = config(dir, 40, 12);
  const auto expected = train(yaml, dir / "one", {{"none", 1, 9}});
  const std::vector<std::string> across{"a", "b", "a", "b"}, in_turn{"a", "a", "b", "b"};
  const auto found =
      train(yaml, dir / "r", {{"hsdp", 4, 3, across}, {"hsdp", 4, 3, in_turn}, {"none", 1, 3}});
  REQUIRE(found.size() == expected.size());
  for (size_t step = 0; step < expected.size(); ++step) {
    INFO("step " << step + 1);
    CHECK(found[step] == Approx(expected[step]).epsilon(1e-5));
  }
}

TEST_CASE("resharding: on CUDA devices, through every strategy", "[train][dist][cuda]") {
  if (test::lacks_cuda()) return;
  allow_tf32(false);
  const int64_t most = std::min<int64_t>(4, num_cuda_devices());
  for (const bool is_var : {true, false}) {
    CAPTURE(is_var, most);
    const test::TempDir dir;
    const std::string yaml = is_var ? var_config(dir, 12) : config(dir, 40, 12);
    const auto expected = train_terms(yaml, dir / "one", {{"none", 1, 8}}, c10::kCUDA);
    const auto found = train_terms(
        yaml, dir / "r", {{"fsdp", most, 3}, {"zero1", 1, 2}, {"ddp", most, 1}, {"hsdp", 1, 2}},
        c10::kCUDA);
    check_equal_terms(found, expected, 1e-4);
  }
}

TEST_CASE("resharding: at the end of an epoch that another number of ranks does not fill",
          "[train][dist]") {
  const test::TempDir dir;
  const std::string yaml = config(dir, 15, 4);
  // Four ranks see one of the 15 images twice, one process leaves three out.
  train(yaml, dir / "r", {{"fsdp", 4, 4}, {"none", 1, 1}});
  const auto info = checkpoint::find_checkpoint(dir / "r");
  const io::Json data = checkpoint::read_state(info).get_object("data");
  CHECK(data.get_int("epoch") == 1);
  CHECK(data.get_int("sample") == 4);
}

TEST_CASE("resharding: ranks that have passed over broken images go on where each was",
          "[train][dist]") {
  const test::TempDir dir;
  const std::string yaml = config(dir, 40, 8);
  std::filesystem::remove(dir / "codes/shard-00001.safetensors");  // the images 16 to 31
  const auto expected = train(yaml, dir / "one", {{"ddp", 2, 5}});
  const auto found = train(yaml, dir / "r", {{"ddp", 2, 2}, {"fsdp", 2, 3}});
  REQUIRE(found.size() == expected.size());
  for (size_t step = 0; step < expected.size(); ++step) {
    INFO("step " << step + 1);
    CHECK(found[step] == Approx(expected[step]).epsilon(1e-5));
  }
  int64_t num_different = 0;  // checkpoints in which the ranks do not stand alike
  for (const int64_t step : {2, 5}) {
    const std::string path = dir / str_cat("r/checkpoints/", checkpoint::step_name(step));
    const io::Json state = checkpoint::read_state(checkpoint::check_checkpoint(path));
    num_different += state.get_object("data").find("positions") != nullptr ? 1 : 0;
  }
  CHECK(num_different > 0);
}

TEST_CASE("resharding: steps go on while a checkpoint is written", "[train][dist]") {
  const test::TempDir dir;
  const std::string yaml = config(dir, 40, 12), run = dir / "async";
  std::promise<void> may_write;
  const std::shared_future<void> gate = may_write.get_future().share();
  std::vector<std::string> problems(2);
  test::run_ranks(2, [&](GroupPtr group) {
    Rank rank(yaml, "fsdp", std::move(group));
    dist::Group& all = rank.strategy->group();
    rank.step();
    checkpoint::CheckpointStore(dir / "sync", {}, &all).save(rank.trainer->snapshot());
    checkpoint::CheckpointStore store(run, {.async_save = true}, &all);
    store.before_write = [&](std::string_view name) {
      if (name.starts_with("model-")) gate.wait_for(std::chrono::seconds(30));
    };
    store.save(rank.trainer->snapshot());
    for (int i = 0; i < 3; ++i) {
      rank.step();
      store.poll();
    }
    problems[static_cast<size_t>(all.rank())] =
        checkpoint::check_checkpoint(run + "/step_0000001").problem;
    all.barrier();
    if (all.rank() == 0) may_write.set_value();
    store.finish();
    all.barrier();
  });
  CHECK(problems == std::vector<std::string>(2, "no index.json: the writing was not finished"));
  CHECK(checkpoint::check_checkpoint(run + "/step_0000001").problem.empty());
  for (const std::string name : {"model", "ema", "optimizer"}) {
    for (const std::string shard : {"-00001-of-00002", "-00002-of-00002"}) {
      const std::string file = str_cat("/step_0000001/", name, shard, ".safetensors");
      INFO(file);
      CHECK(test::read_file(run + file) == test::read_file(dir / "sync" + file));
    }
  }
}

}  // namespace
}  // namespace vgen::train
