// What tokenizers cost on paper: operations against sums by hand, kept bytes against a forward
// pass. A whole step: plan_step_test.cpp.

#include "vgen/train/tokenizer_cost.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <regex>

#include "support/count_memory.h"
#include "support/pictures.h"
#include "support/support.h"
#include "vgen/core/strings.h"
#include "vgen/dist/activation_checkpoint.h"
#include "vgen/io/json.h"
#include "vgen/tensor/block.h"
#include "vgen/train/run.h"
#include "vgen/train/var_tokenizer_task.h"

namespace vgen::train {
namespace {

constexpr int64_t kSide = 32;

tokenizer::VqganConfig small_vqgan() {
  return {.ch = 32,
          .num_res_blocks = 1,
          .encoder_ch_mult = {1, 2},
          .decoder_ch_mult = {1, 2},
          .z_channels = 8,
          .codebook_size = 64};
}

tokenizer::MultiScaleVqvaeConfig small_vqvae() {
  return {.ch = 32,
          .num_res_blocks = 1,
          .ch_mult = {1, 2},
          .z_channels = 8,
          .codebook_size = 64,
          .patch_nums = {1, 2, 4, 8, 16}};
}

tokenizer::VqLossConfig small_loss() {
  return {.perceptual_weight = 0, .disc_start = 0, .disc_dim = 16, .disc_num_layers = 2};
}

TEST_CASE("tokenizer cost: operations are those of the layers", "[train]") {
  // Products of the encoder, level by level: 32 channels at 1024 pixels, 64 at 256.
  const double convs32 = 9 * 32 * 32 * 1024, convs64 = 9 * 64 * 64 * 256;
  const double attention = 4 * 64 * 64 * 256 + 2 * 64 * 256 * 256;
  const double encoder = 9 * 3 * 32 * 1024 + 2 * convs32 + 9 * 32 * 32 * 256 +
                         (9 * 32 * 64 * 256 + convs64 + 32 * 64 * 256 + attention) +
                         (4 * convs64 + attention) + 9 * 64 * 8 * 256;
  const double decoder = 9 * 8 * 64 * 256 + (4 * convs64 + attention) +
                         2 * (2 * convs64 + attention) + 9 * 64 * 64 * 1024 +
                         (9 * 64 * 32 * 1024 + convs32 + 64 * 32 * 1024 + 2 * convs32) +
                         9 * 32 * 3 * 1024;
  tokenizer::VqLossConfig loss = small_loss();
  loss.disc_weight = 0;
  const TokenizerFlops vqgan = tokenizer_flops(shape_of(small_vqgan()), loss, kSide);
  CHECK(vqgan.encode == 2 * (encoder + 2 * 8 * 8 * 256));
  CHECK(vqgan.decode == 2 * decoder);
  CHECK(vqgan.search == 2.0 * 64 * 8 * 256);
  CHECK(vqgan.entropy + vqgan.vgg + vqgan.disc == 0);
  CHECK(vqgan.train() == 3 * (vqgan.encode + vqgan.decode) + vqgan.search);
  // Five scales, each with its search and a 3x3 convolution of 8 channels.
  const TokenizerFlops vqvae = tokenizer_flops(shape_of(small_vqvae()), loss, kSide);
  CHECK(vqvae.encode == 2 * (encoder + (5 + 2) * 9 * 8 * 8 * 256));
  CHECK(vqvae.decode == vqgan.decode);
  CHECK(vqvae.search == 2.0 * 64 * 8 * (1 + 4 + 16 + 64 + 256));

  // VGG16's convolutions take 15.35 billion products for an image of 224 pixels.
  loss.perceptual_weight = 1;
  CHECK(tokenizer_flops(shape_of(small_vqgan()), loss, 224).vgg == 2 * 15'346'630'656.0);
  loss = {.perceptual_weight = 0};
  const TokenizerFlops patchgan = tokenizer_flops(shape_of(small_vqgan()), loss, 256);
  CHECK(patchgan.disc == 2.0 * 16 *
                             (3.0 * 64 * 128 * 128 + 64.0 * 128 * 64 * 64 + 128.0 * 256 * 32 * 32 +
                              256.0 * 512 * 31 * 31 + 512.0 * 30 * 30));
  CHECK(patchgan.train() ==
        3 * (patchgan.encode + patchgan.decode) + patchgan.search + 8 * patchgan.disc);
  loss.disc_type = "stylegan";
  const double halving = 512.0 * 512 * (9 * 64 + 9 * 64 + 9 * 16 + 16);  // 8 to 4 pixels
  CHECK(tokenizer_flops(shape_of(small_vqgan()), loss, 8).disc ==
        2 * (9.0 * 3 * 512 * 64 + halving + 9.0 * 512 * 512 * 16 + 512 * 16 * 512 + 512));
}

/// A tokenizer's task on the same images in every step.
template <class TaskType>
class FixedTask : public TaskType {
 public:
  template <class Config>
  FixedTask(const Config& config, const TaskContext& context) : TaskType(config, context) {}
  void use(const torch::Tensor& image_B3HW) { this->set_batches({image_B3HW}); }
};

/// What the generator's forward pass leaves behind, without and with checkpoints, in both
/// precisions.
template <class TaskType, class Config>
void check_kept(Config config) {
  config.loss = small_loss();
  config.data.image_size = kSide;
  const int64_t batch = 8;
  const auto image_B3HW = torch::rand({batch, 3, kSide, kSide}) * 2 - 1;
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
    FixedTask<TaskType> task(config,
                             {.precision = dtype, .micro_batch_size = batch, .is_training = false});
    const ActivationSetup setup{
        .batch = batch, .compute_bytes = dtype == torch::kFloat32 ? 4 : 2, .is_cpu = true};
    const auto paper =
        tokenizer_activations(shape_of(config.model), config.loss, kSide, setup).front();
    for (const bool is_checkpointed : {false, true}) {
      CAPTURE(c10::toString(dtype), is_checkpointed);
      dist::CheckpointRunner checkpoints;
      const BlockRunnerGuard guard(is_checkpointed ? &checkpoints : nullptr);
      task.use(image_B3HW);
      const test::MemoryCount count;
      const PhaseLoss kept = task.loss(0, 0, /*step=*/1);
      CHECK(static_cast<double>(paper.kept(is_checkpointed)) == Approx(count.now()).epsilon(0.1));
    }
  }
}

TEST_CASE("tokenizer cost: what a VQGAN keeps for its backward pass", "[train]") {
  TokenizerRunConfig config;
  config.model = small_vqgan();
  config.model.dropout_p = GENERATE(0.0, 0.1);
  CAPTURE(config.model.dropout_p);
  check_kept<TokenizerTask>(config);
}

TEST_CASE("tokenizer cost: what VAR's tokenizer keeps for its backward pass", "[train]") {
  VarTokenizerRunConfig config;
  config.model = small_vqvae();
  check_kept<VarTokenizerTask>(config);
}

tokenizer::Lpips random_lpips() {
  constexpr int64_t kWidths[] = {64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512};
  constexpr int kIndices[] = {0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28};
  constexpr int64_t kTaps[] = {64, 128, 256, 512, 512};
  tokenizer::NamedWeights vgg, lin;
  int64_t channels = 3;
  for (size_t i = 0; i < std::size(kWidths); ++i) {
    const std::string name = str_cat("features.", kIndices[i]);
    vgg[name + ".weight"] =
        torch::randn({kWidths[i], channels, 3, 3}) / std::sqrt(static_cast<double>(channels * 9));
    vgg[name + ".bias"] = torch::zeros({kWidths[i]});
    channels = kWidths[i];
  }
  for (int k = 0; k < 5; ++k) {
    lin[str_cat("lin", k, ".model.1.weight")] = torch::rand({1, kTaps[k], 1, 1});
  }
  return tokenizer::Lpips(vgg, lin);
}

TEST_CASE("tokenizer cost: what LPIPS keeps, and needs besides", "[train]") {
  constexpr int64_t kLpipsSide = 64, kBatch = 4;
  tokenizer::VqLossConfig config{.disc_weight = 0};
  config.perceptual_dropout = GENERATE(false, true);
  CAPTURE(config.perceptual_dropout);
  tokenizer::VqLoss loss(config, kLpipsSide, random_lpips());
  const auto image_B3HW = torch::rand({kBatch, 3, kLpipsSide, kLpipsSide}) * 2 - 1;
  const auto recon_B3HW = torch::rand_like(image_B3HW)
                              .contiguous(torch::MemoryFormat::ChannelsLast)
                              .requires_grad_(true);
  const auto forward = [&] {
    return loss
        ->generator_loss({.image_B3HW = image_B3HW,
                          .recon_B3HW = recon_B3HW,
                          .quantizer = {},
                          .step = 1,
                          .last_weight = {}})
        .loss;
  };
  const test::MemoryCount count;
  const torch::Tensor kept = forward();
  const int64_t found = count.now();
  kept.backward();

  // On paper the loss is what a tokenizer has with it and not without.
  const auto shape = shape_of(small_vqgan());
  const ActivationSetup setup{.batch = kBatch, .is_cpu = true};
  const auto with = tokenizer_activations(shape, config, kLpipsSide, setup).front();
  config.perceptual_weight = 0;
  const auto without = tokenizer_activations(shape, config, kLpipsSide, setup).front();
  CHECK(static_cast<double>(with.head - without.head) == Approx(found).epsilon(0.1));
  CHECK(static_cast<double>(with.head + with.extra - without.head) ==
        Approx(count.peak()).epsilon(0.1));
}

TEST_CASE("tokenizer cost: a run tells its share of the device", "[train]") {
  const test::TempDir dir;
  for (int64_t i = 0; i < 4; ++i) {
    test::write_picture(dir / str_cat("pictures/a/", i, ".png"), test::noise_picture(20, 18, i));
  }
  const std::string config = dir / "small.yaml";
  test::write_file(
      config,
      str_cat("task: tokenizer\nsteps: 3\nglobal_batch_size: 4\nprecision: fp32\nthreads: 1\n"
              "log_every: 1\npeak_tflops: 0.5\n"
              "model: {ch: 32, num_res_blocks: 1, encoder_ch_mult: [1, 1], "
              "decoder_ch_mult: [1, 1], z_channels: 8, codebook_size: 32}\n"
              "loss: {perceptual_weight: 0, disc_dim: 8, disc_num_layers: 1, disc_start: 2}\n"
              "data: {image_size: 16, workers: 1, train: {path: ",
              dir / "pictures", "}}\n"));
  run({config, {}, dir / "r", "never"});
  const auto run_config = load_config<TokenizerRunConfig>(config, {});
  const double flops =
      tokenizer_flops(shape_of(run_config.model), run_config.loss, run_config.data.image_size)
          .train();
  int lines = 0;
  for (const auto& line : split(test::read_file(dir / "r/metrics.jsonl"), '\n')) {
    if (line.empty()) continue;
    const io::Json json = io::parse_json(line);
    if (json.find("train/mfu") == nullptr) continue;
    ++lines;
    CHECK(json.get_float("train/mfu") ==
          Approx(json.get_float("train/images_per_s") * flops / 0.5e12).epsilon(1e-3));
    CHECK(json.find("train/tokens_per_s") == nullptr);
  }
  CHECK(lines == 3);
  const std::string log = test::read_file(dir / "r/log.txt");
  CAPTURE(log);
  CHECK(std::regex_search(log, std::regex("3/3 steps .*[0-9.]+ images/s . MFU [0-9]+ %")));
}

}  // namespace
}  // namespace vgen::train
