// Runs on paper: the shapes of the models that are trained, and what a forward pass really keeps. A
// whole step: plan_step_test.cpp.

#include "vgen/train/plan.h"

#include <torch/torch.h>

#include <algorithm>
#include <catch2/catch.hpp>

#include "support/count_memory.h"
#include "support/support.h"
#include "train/plan_support.h"
#include "vgen/core/strings.h"
#include "vgen/dist/activation_checkpoint.h"
#include "vgen/gpt/transformer.h"
#include "vgen/io/json.h"
#include "vgen/nn/cross_entropy.h"
#include "vgen/nn/narrow.h"
#include "vgen/tensor/autocast.h"
#include "vgen/train/gpt_task.h"
#include "vgen/train/var_task.h"

namespace vgen::train {
namespace {

using Catch::Contains;
using test::plan;
using test::row_of;
using test::yaml;

constexpr const char* kGpt =
    "task: gpt\nsteps: 4\nglobal_batch_size: 8\nprecision: fp32\nema_decay: 0.9\n"
    "model: {vocab_size: 512, block_size: 64, n_layer: 4, n_head: 4, dim: 64, multiple_of: 64, "
    "num_classes: 10}\ndata: {train: codes}\n";
constexpr const char* kVar =
    "task: var\nsteps: 4\nglobal_batch_size: 16\nprecision: fp32\n"
    "model: {depth: 4, dim: 64, n_head: 4, patch_nums: [1, 2, 3, 4], num_classes: 10, "
    "codebook_size: 512, z_channels: 16}\ntokenizer: {path: vae.pth}\ndata: {train: codes}\n";
constexpr const char* kTokenizer =
    "task: tokenizer\nsteps: 4\nglobal_batch_size: 8\nmodel: {ch: 32, num_res_blocks: 1, "
    "encoder_ch_mult: [1, 2], decoder_ch_mult: [1, 2], z_channels: 8, codebook_size: 64}\n"
    "lpips: {vgg: /no/such.pth, lin: /no/such.pth}\n"
    "data: {image_size: 32, train: {path: pictures}}\n";
constexpr const char* kVarTokenizer =
    "task: var_tokenizer\nsteps: 4\nglobal_batch_size: 8\nmodel: {ch: 32, num_res_blocks: 1, "
    "ch_mult: [1, 2], z_channels: 8, codebook_size: 64, patch_nums: [1, 2, 4]}\n"
    "loss: {perceptual_weight: 0}\ndata: {image_size: 8, train: {path: pictures}}\n";

GptRunConfig gpt_config() { return read_config<GptRunConfig>(yaml(kGpt)); }
VarRunConfig var_config() { return read_config<VarRunConfig>(yaml(kVar)); }

/// Elements of each block of a phase, and of what lies outside of them, from the modules.
void check_sizes(const dist::PhaseSizes& paper, const Phase& phase) {
  const auto sum = [](const std::vector<int64_t>& sizes) {
    int64_t sum = 0;
    for (const int64_t size : sizes) sum += size;
    return sum;
  };
  REQUIRE(paper.blocks.size() == phase.blocks.size());
  int64_t all = 0, in_blocks = 0;
  for (const auto& item : phase.parameters) all += item.tensor.numel();
  for (size_t i = 0; i < phase.blocks.size(); ++i) {
    int64_t count = 0;
    for (const auto& parameter : phase.blocks[i]->parameters()) count += parameter.numel();
    CHECK(sum(paper.blocks[i]) == count);
    in_blocks += count;
  }
  CHECK(sum(paper.root) == all - in_blocks);
  CHECK(paper.is_float32 == phase.is_float32);
}

/// Bytes that a forward pass leaves behind for the backward pass, on this machine.
int64_t measured_kept(const std::function<torch::Tensor()>& loss, c10::ScalarType dtype,
                      bool is_checkpointed) {
  dist::CheckpointRunner checkpoints;
  const BlockRunnerGuard guard(is_checkpointed ? &checkpoints : nullptr);
  const auto forward = [&] {
    const Autocast autocast(c10::kCPU, dtype);
    return loss();
  };
  forward();  // makes what stays: tables, masks
  const test::MemoryCount count;
  const torch::Tensor kept = forward();
  return count.now();
}

ActivationSetup on_cpu(int64_t batch, c10::ScalarType dtype) {
  return {.batch = batch,
          .compute_bytes = dtype == c10::kFloat ? 4 : 2,
          .is_cpu = true,
          .is_widened = !nn::has_fast_products(dtype)};
}

void check_kept(const std::function<torch::Tensor()>& loss,
                const std::function<Activations(const ActivationSetup&)>& paper, int64_t batch) {
  for (const auto dtype : {c10::kFloat, c10::kBFloat16}) {
    for (const bool is_checkpointed : {false, true}) {
      CAPTURE(c10::toString(dtype), is_checkpointed);
      const auto planned = paper(on_cpu(batch, dtype)).kept(is_checkpointed);
      const int64_t found = measured_kept(loss, dtype, is_checkpointed);
      CHECK(static_cast<double>(planned) == Approx(found).epsilon(0.1));
    }
  }
}

TEST_CASE("plan: shapes and operations are those of the models", "[train]") {
  for (const char* text : {kGpt, kVar}) {
    const RunPlan run = plan_run(yaml(text));
    const auto task = run.make_task({.is_training = false});
    const PaperModel paper = model_on_paper(yaml(text));
    CAPTURE(paper.title);
    REQUIRE(paper.phases.size() == 1);
    check_sizes(paper.phases[0], task->phases()[0]);
    CHECK(paper.workload.flops_per_sample == Approx(task->workload().flops_per_sample));
    CHECK(paper.workload.tokens_per_sample == task->workload().tokens_per_sample);
  }
  for (const char* text : {kTokenizer, kVarTokenizer}) {
    ConfigNode root = yaml(text);
    const PaperModel paper = model_on_paper(root);
    CAPTURE(paper.title);
    apply_override(root, "loss.perceptual_weight=0");
    const auto task = plan_run(root).make_task({.is_training = false});
    REQUIRE(paper.phases.size() == 2);
    for (size_t i = 0; i < 2; ++i) check_sizes(paper.phases[i], task->phases()[i]);
    // As many blocks on paper as the model has.
    REQUIRE(paper.activations({}).size() == 2);
    CHECK(paper.activations({})[0].blocks.size() == paper.phases[0].blocks.size());
    const PaperModel without_lpips = model_on_paper(root);
    CHECK(without_lpips.workload.flops_per_sample == task->workload().flops_per_sample);
    CHECK(without_lpips.workload.tokens_per_sample == 0);
    CHECK(task->workload().tokens_per_sample == 0);
  }
}

TEST_CASE("plan: what the GPT keeps for its backward pass", "[train]") {
  const gpt::GptConfig config = gpt_config().model;
  gpt::Transformer model(config);
  const int64_t batch = 8;
  const auto code_BN = torch::randint(config.vocab_size, {batch, config.block_size}, torch::kLong);
  const auto label_B = torch::randint(config.num_classes, {batch}, torch::kLong);
  const auto loss = [&] {
    return gpt::gpt_loss(model(gpt::GptBatch{.code_BN = code_BN, .condition = label_B}), code_BN);
  };
  check_kept(
      loss, [&](const auto& setup) { return gpt_activations(config, setup); }, batch);
}

TEST_CASE("plan: what VAR keeps for its backward pass", "[train]") {
  var::VarConfig config = var_config().model;
  config.attn_l2_norm = GENERATE(true, false);
  config.shared_adaln = GENERATE(false, true);
  CAPTURE(config.attn_l2_norm, config.shared_adaln);
  var::VarTransformer model(config);
  const int64_t batch = 16, tokens = config.num_tokens();
  const auto code_BL = torch::randint(config.codebook_size, {batch, tokens}, torch::kLong);
  const auto label_B = torch::randint(config.num_classes, {batch}, torch::kLong);
  const auto teacher_BMZ = torch::randn({batch, tokens - 1, config.z_channels});
  const auto weight_L = torch::full({tokens}, 1.0 / static_cast<double>(tokens));
  const auto loss = [&] {
    return var::var_loss(nn::score_rows(model(label_B, teacher_BMZ), code_BL).loss, weight_L);
  };
  check_kept(
      loss, [&](const auto& setup) { return var_activations(config, setup); }, batch);
}

TEST_CASE("plan: published models on many GPUs", "[train]") {
  PlanOptions options{
      .config = test::project_path("configs/gpt/3b-384.yaml"), .overrides = {}, .gpus = 16};
  const PlanReport report = plan_training(options);
  CHECK(report.num_parameters == Approx(3.1e9).epsilon(0.01));
  CHECK(report.micro_batch_size == 16);
  CHECK(report.rows.size() == 10);
  const PlanRow& none = row_of(report, "none", false);
  CHECK(none.ranks == 1);
  // Weights, gradients and Adam in float32: 16 bytes a parameter.
  const dist::PlannedMemory& memory = none.memory;
  CHECK(memory.parameters + memory.gradients + memory.optimizer == 16 * report.num_parameters);
  CHECK(memory.averages + memory.gathered + memory.buffers == 0);
  CHECK_FALSE(none.is_fitting);
  CHECK(none.sent_bytes == 0);
  const PlanRow& ddp = row_of(report, "ddp", false);
  CHECK(ddp.sent_bytes == Approx(2.0 * 15 / 16 * 4 * 3.1e9).epsilon(0.01));
  const PlanRow &fsdp = row_of(report, "fsdp", true), &kept = row_of(report, "fsdp", false);
  CHECK(fsdp.is_fitting);
  CHECK(fsdp.activations < kept.activations / 4);
  CHECK(fsdp.time.compute == Approx(kept.time.compute * 4 / 3));
  CHECK(fsdp.memory.optimizer == Approx(8.0 * 3.1e9 / 16).epsilon(0.01));
  const PlanRow& hsdp = row_of(report, "hsdp", true);
  CHECK(report.shard_ranks == 8);
  CHECK(hsdp.memory.optimizer == Approx(8.0 * 3.1e9 / 8).epsilon(0.01));
  for (const char* part : {"3.10 billion parameters", "16 x NVIDIA H100 SXM 80 GB",
                           "fits and is fastest", "hsdp: groups of 8 ranks"}) {
    CHECK_THAT(format_report(report), Contains(part));
  }
  const io::Json json = io::parse_json(report_json(report));
  CHECK(json.get_array("rows").items.size() == 10);
  CHECK(json.get_array("rows").items[0].get_string("strategy") == "none");

  options.config = test::project_path("configs/var/d30-256.yaml");
  CHECK(plan_training(options).num_parameters == Approx(2.01e9).epsilon(0.01));
  for (const char* name : {"tokenizer/vq16-256", "var/tokenizer-256"}) {
    options.config = test::project_path(str_cat("configs/", name, ".yaml"));
    options.gpus = 8;
    const PlanReport tokenizer = plan_training(options);
    CHECK(row_of(tokenizer, "ddp", false).is_fitting);
    CHECK_THAT(format_report(tokenizer), !Contains("Note:"));
    options.overrides = {"loss.disc_type=stylegan"};
    CHECK_THAT(format_report(plan_training(options)), Contains("Note: StyleGAN's discriminator"));
    options.overrides.clear();
  }
}

TEST_CASE("plan: what cannot be planned is told in a line", "[train]") {
  const auto error = [](const PlanOptions& options) {
    return test::error_of([&] { plan(kGpt, options); });
  };
  CHECK_THAT(error({.config = {}, .overrides = {}, .gpu = "h1000"}), Contains("is it 'h100'?"));
  CHECK_THAT(error({.config = {}, .overrides = {}, .gpus = 3}),
             Contains("global_batch_size is 8") && Contains("9 would"));
  CHECK_THAT(error({.config = {}, .overrides = {"model.n_layr=3"}}), Contains("is it 'n_layer'?"));
  CHECK_THAT(error({.config = {}, .overrides = {}, .mfu = 0}), Contains("mfu is 0"));
  // Groups that the ranks do not divide into are left out.
  const PlanReport report =
      plan(kGpt, {.config = {}, .overrides = {"parallel.shard_ranks=3"}, .gpus = 4});
  CHECK(report.rows.size() == 8);
  CHECK_THAT(format_report(report), Contains("hsdp: left out, 4 ranks are no groups of 3"));
  CHECK_THAT(format_gpus(), Contains("rtx4090") && Contains("989.4"));
}

}  // namespace
}  // namespace vgen::train
