// Runs on paper: the most memory of a whole training step, against what it really takes.

#include <torch/torch.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <functional>
#include <limits>

#include "support/count_memory.h"
#include "support/pictures.h"
#include "support/ranks.h"
#include "support/support.h"
#include "train/plan_support.h"
#include "vgen/core/strings.h"
#include "vgen/infer/multi_scale_tokenizer.h"
#include "vgen/train/gpt_task.h"
#include "vgen/train/plan.h"
#include "vgen/train/trainer.h"
#include "vgen/train/var_task.h"

namespace vgen::train {
namespace {

// Not in bf16: a processor without such arithmetic makes float32 copies besides, on each thread.
constexpr const char* kGpt =
    "task: gpt\nsteps: 5\nglobal_batch_size: 8\nprecision: fp32\nema_decay: 0.9\n"
    "model: {vocab_size: 512, block_size: 64, n_layer: 4, n_head: 4, dim: 64, multiple_of: 64, "
    "num_classes: 10}\ndata: {train: codes}\n";
constexpr const char* kVar =
    "task: var\nsteps: 5\nglobal_batch_size: 16\nprecision: fp32\nema_decay: 0.9\n"
    "model: {depth: 4, dim: 64, n_head: 4, patch_nums: [1, 2, 3, 4], num_classes: 10, "
    "codebook_size: 512, z_channels: 16}\ntokenizer: {path: vae.pth}\ndata: {train: codes}\n";
constexpr const char* kLoss =
    "loss: {perceptual_weight: 0, disc_dim: 16, disc_num_layers: 2, disc_start: 0}\n";

/// Random codes, the same in every step of one micro-batch.
codes::CodeBatch random_codes(int64_t batch, int64_t tokens, int64_t num_codes, int64_t classes) {
  codes::CodeBatch codes{torch::randint(num_codes, {batch, tokens}, torch::kLong),
                         torch::randint(classes, {batch}, torch::kLong),
                         {}};
  for (int64_t i = 0; i < batch; ++i) codes.index.push_back(i);
  return codes;
}

/// A task without files.
class FixedGpt : public GptTask {
 public:
  FixedGpt(const GptRunConfig& config, const TaskContext& context)
      : GptTask(config, context), batch_(context.micro_batch_size), model_(config.model) {}
  void next_batches(int64_t count) override {
    const auto codes =
        random_codes(batch_, model_.block_size, model_.vocab_size, model_.num_classes);
    set_batches(std::vector<codes::CodeBatch>(static_cast<size_t>(count), codes));
  }
  int64_t batches_per_epoch() const override { return 10; }
  data::LoaderPosition position() const override { return {}; }

 private:
  int64_t batch_;
  gpt::GptConfig model_;
};

class FixedVar : public VarTask {
 public:
  FixedVar(const VarRunConfig& config, const TaskContext& context,
           std::unique_ptr<infer::MultiScaleTokenizer> tokenizer)
      : VarTask(config, context), batch_(context.micro_batch_size), model_(config.model) {
    set_tokenizer(std::move(tokenizer));
  }
  void next_batches(int64_t count) override {
    const auto codes =
        random_codes(batch_, model_.num_tokens(), model_.codebook_size, model_.num_classes);
    set_batches(std::vector<codes::CodeBatch>(static_cast<size_t>(count), codes));
  }
  int64_t batches_per_epoch() const override { return 10; }
  data::LoaderPosition position() const override { return {}; }

 private:
  int64_t batch_;
  var::VarConfig model_;
};

std::unique_ptr<infer::MultiScaleTokenizer> tiny_tokenizer(const var::VarConfig& model) {
  tokenizer::MultiScaleVqvae vqvae(
      tokenizer::MultiScaleVqvaeConfig{.ch = 32,
                                       .num_res_blocks = 1,
                                       .ch_mult = {1},
                                       .z_channels = model.z_channels,
                                       .codebook_size = model.codebook_size,
                                       .patch_nums = model.patch_nums});
  vqvae->eval();
  return std::make_unique<infer::MultiScaleTokenizer>(vqvae, c10::kCPU);
}

using MakeTask = std::function<std::unique_ptr<Task>(const TaskContext&)>;

/// The most that a rank has at a time in a step, weights included. The least of three steps: where
/// other programs hold up the threads of a collective, what it gives back comes late.
int64_t measured_step(const RunConfig& run, int64_t ranks, const MakeTask& make_task) {
  const test::MemoryCount counted;
  std::vector<int64_t> peaks(static_cast<size_t>(ranks));
  test::run_ranks(ranks, [&](std::unique_ptr<dist::Group> group) {
    test::ThreadMemoryCount count;
    const auto strategy = dist::make_strategy(run.parallel, std::move(group), torch::kFloat, ranks);
    const auto task = make_task({.rank = strategy->rank(),
                                 .world_size = ranks,
                                 .micro_batch_size = micro_batch_size(run, ranks),
                                 .group = ranks > 1 ? &strategy->group() : nullptr});
    Trainer trainer(run, *task, *strategy, torch::kCPU);
    for (int i = 0; i < 2; ++i) trainer.step();
    int64_t& least = peaks[static_cast<size_t>(strategy->rank())];
    least = std::numeric_limits<int64_t>::max();
    for (int i = 0; i < 3; ++i) {
      count.reset_peak();
      trainer.step();
      least = std::min(least, count.peak());
    }
    strategy->group().barrier();
  });
  return *std::ranges::max_element(peaks);
}

struct Case {
  const char* strategy;
  int64_t grad_accum_steps;
  bool is_checkpointed;
};

/// The plan of a config against its step. Weights of the paper's frozen tokenizer, which is another
/// one than the test's, are left out of both.
void check_step(const std::string& text, const Case& c,
                const std::function<MakeTask(const ConfigNode&)>& maker) {
  CAPTURE(c.strategy, c.grad_accum_steps, c.is_checkpointed);
  const int64_t ranks = std::string_view(c.strategy) == "none" ? 1 : 2;
  const std::vector<std::string> overrides{
      str_cat("parallel.strategy=", c.strategy), str_cat("grad_accum_steps=", c.grad_accum_steps),
      str_cat("parallel.activation_checkpointing=", c.is_checkpointed ? "true" : "false")};
  const PlanReport report =
      test::plan(text, {.config = {}, .overrides = overrides, .gpus = ranks, .gpu = "cpu"});
  const PlanRow& row = test::row_of(report, c.strategy, c.is_checkpointed);
  ConfigNode root = test::yaml(text);
  for (const std::string& assignment : overrides) apply_override(root, assignment);
  const RunConfig run = plan_run(root).run;
  CHECK(row.memory.averages > 0);
  const auto planned = static_cast<double>(row.total - report.frozen_bytes);
  CHECK(planned == Approx(measured_step(run, ranks, maker(root))).epsilon(0.1));
}

Case any_case() {
  const char* strategy = GENERATE("none", "ddp", "zero1", "fsdp", "hsdp");
  const int64_t grad_accum_steps = GENERATE(1, 2);
  const bool is_checkpointed = GENERATE(false, true);
  return {strategy, grad_accum_steps, is_checkpointed};
}

/// Of the tokenizers, which compute for longer.
Case some_case() {
  return GENERATE(Case{"none", 1, false}, Case{"none", 2, true}, Case{"ddp", 1, false},
                  Case{"ddp", 1, true}, Case{"zero1", 2, false}, Case{"fsdp", 1, false},
                  Case{"fsdp", 1, true}, Case{"fsdp", 2, false});
}

TEST_CASE("plan: a whole training step of the GPT", "[train][dist]") {
  check_step(kGpt, any_case(), [](const ConfigNode& root) -> MakeTask {
    return [config = read_config<GptRunConfig>(root)](TaskContext context) {
      context.is_training = false;
      return std::make_unique<FixedGpt>(config, context);
    };
  });
}

TEST_CASE("plan: a whole training step of VAR", "[train][dist]") {
  check_step(kVar, any_case(), [](const ConfigNode& root) -> MakeTask {
    const auto config = read_config<VarRunConfig>(root);
    // Before anything is counted.
    const auto ready = std::make_shared<std::vector<std::unique_ptr<infer::MultiScaleTokenizer>>>();
    for (int i = 0; i < 2; ++i) ready->push_back(tiny_tokenizer(config.model));
    return [config, ready](TaskContext context) {
      context.is_training = false;
      auto& tokenizer = ready->at(static_cast<size_t>(context.rank));
      return std::make_unique<FixedVar>(config, context, std::move(tokenizer));
    };
  });
}

/// Training of a tokenizer as it is, on a folder of pictures.
void check_tokenizer_step(const std::string& text, const Case& c) {
  const test::TempDir dir;
  for (int64_t i = 0; i < 16; ++i) {
    test::write_picture(dir / str_cat("pictures/a/", i, ".png"), test::noise_picture(36, 32, i));
  }
  const std::string data =
      str_cat("data: {image_size: 32, workers: 1, train: {path: ", dir / "pictures", "}}\n");
  check_step(str_cat(text, kLoss, data), c, [](const ConfigNode& root) -> MakeTask {
    return [plan = plan_run(root)](const TaskContext& context) { return plan.make_task(context); };
  });
}

TEST_CASE("plan: a whole training step of a VQGAN", "[train][dist]") {
  check_tokenizer_step(
      "task: tokenizer\nsteps: 5\nglobal_batch_size: 8\nprecision: fp32\nema_decay: 0.9\n"
      "model: {ch: 32, num_res_blocks: 1, encoder_ch_mult: [1, 2], decoder_ch_mult: [1, 2], "
      "z_channels: 8, codebook_size: 64}\n",
      some_case());
}

TEST_CASE("plan: a whole training step of VAR's tokenizer", "[train][dist]") {
  check_tokenizer_step(
      "task: var_tokenizer\nsteps: 5\nglobal_batch_size: 8\nprecision: fp32\nema_decay: 0.9\n"
      "model: {ch: 32, num_res_blocks: 1, ch_mult: [1, 2], z_channels: 8, codebook_size: 64, "
      "patch_nums: [1, 2, 4, 8, 16]}\n",
      some_case());
}

}  // namespace
}  // namespace vgen::train
