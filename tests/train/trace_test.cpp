// The first steps of a VQGAN training run against the official code's, through the trainer.

#include <catch2/catch.hpp>
#include <cmath>
#include <set>

#include "support/golden.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/io/json.h"
#include "vgen/io/mapped_file.h"
#include "vgen/train/tokenizer_task.h"
#include "vgen/train/trainer.h"

namespace vgen::train {
namespace {

using test::golden;
using test::golden_tensor;

/// The settings of golden/train_vq/meta.json.
TokenizerRunConfig golden_config() {
  TokenizerRunConfig config;
  config.run.steps = 5;
  config.run.global_batch_size = 2;
  config.run.precision = "fp32";
  config.model = {.ch = 32,
                  .num_res_blocks = 1,
                  .encoder_ch_mult = {1, 1},
                  .decoder_ch_mult = {1, 1},
                  .z_channels = 16,
                  .codebook_size = 32};
  config.loss.disc_start = 0;
  config.loss.disc_dim = 8;
  config.lpips = {golden("train_vq/vgg16.pth"), golden("train_vq/vgg_lpips.pth")};
  config.data.image_size = 32;
  return config;
}

/// The golden batches instead of a loader's.
class GoldenTask : public TokenizerTask {
 public:
  explicit GoldenTask(const TokenizerRunConfig& config)
      : TokenizerTask(config, {.micro_batch_size = 2, .is_training = false}) {
    init_from(golden("train_vq/init.pt"));
  }
  void next_batches(int64_t count) override {
    REQUIRE(count == 1);
    set_batches({images_.select(0, next_++)});
  }
  int64_t batches_per_epoch() const override { return 5; }

 private:
  torch::Tensor images_ = golden_tensor("train_vq/images.npy");
  int64_t next_ = 0;
};

io::Json golden_meta() { return io::parse_json(io::read_text_file(golden("train_vq/meta.json"))); }

/// Weights after the trace. A step moves an element by at most about the learning rate, 1e-4: those
/// that rounding alone moves (meta.json: rounding_sensitive) are left out.
void check_weights(const torch::nn::Module& module, const std::string& file) {
  std::set<std::string> sensitive;
  const io::Json meta = golden_meta();
  for (const auto& [name, share] : meta.get_object("rounding_sensitive").members) {
    sensitive.insert(name);
  }
  const io::StateDict expected = io::load_state_dict(golden(file));
  int64_t compared = 0;
  for (const auto& item : checkpoint::named_state(module)) {
    if (sensitive.contains(item.name)) continue;
    const io::Array* array = expected.find(item.name);
    REQUIRE(array != nullptr);
    INFO(item.name);
    CHECK_THAT(item.tensor.to(torch::kFloat32),
               test::AllClose(checkpoint::as_tensor(*array).to(torch::kFloat32), {2e-5, 1e-4}));
    ++compared;
  }
  CHECK(compared >= 20);
}

TEST_CASE("trainer: the loss terms of the official VQGAN training", "[train][golden]") {
  const TokenizerRunConfig config = golden_config();
  GoldenTask task(config);
  const auto strategy = dist::single_process();
  Trainer trainer(config.run, task, *strategy, torch::kCPU);
  const torch::Tensor expected = golden_tensor("train_vq/terms.npy");
  const io::Json meta = golden_meta();
  const auto& columns = meta.get_array("terms").items;
  REQUIRE(expected.size(1) == static_cast<int64_t>(columns.size()));

  for (int64_t step = 0; step < expected.size(0); ++step) {
    std::map<std::string, double> found;
    for (const auto& [name, value] : trainer.step()) found[name] = value.item<double>();
    for (size_t c = 0; c < columns.size(); ++c) {
      const std::string& name = columns[c].text;
      INFO("step " << step + 1 << ", " << name);
      REQUIRE(found.contains(name));
      const double want = expected[step][static_cast<int64_t>(c)].item<double>();
      CHECK(std::abs(found[name] - want) <= 1e-3 * std::abs(want));
    }
  }
  check_weights(task.model(), "train_vq/final.safetensors");
  check_weights(*task.companions().at(0).second, "train_vq/final_discriminator.safetensors");
}

TEST_CASE("trainer: micro-batches give the gradients of the whole batch", "[train]") {
  TokenizerRunConfig config = golden_config();
  config.loss.disc_weight = 0;  // batch norm sees the micro-batches
  const torch::Tensor image_B3HW = golden_tensor("train_vq/images.npy").select(0, 0);

  struct Halves : GoldenTask {
    using GoldenTask::GoldenTask;
    void next_batches(int64_t count) override {
      const auto image_B3HW = golden_tensor("train_vq/images.npy").select(0, 0);
      const auto chunks = image_B3HW.chunk(count);
      set_batches({chunks.begin(), chunks.end()});
    }
  };
  std::vector<std::map<std::string, double>> found(2);
  std::vector<torch::Tensor> weights;
  for (const int64_t count : {1, 2}) {
    config.run.grad_accum_steps = count;
    Halves task(config);
    const auto strategy = dist::single_process();
    Trainer trainer(config.run, task, *strategy, torch::kCPU);
    for (const auto& [name, value] : trainer.step()) {
      found[static_cast<size_t>(count - 1)][name] = value.item<double>();
    }
    weights.push_back(checkpoint::named_parameters(task.model()).at(0).tensor.clone());
  }
  CHECK(found[0]["rec_loss"] == Approx(found[1]["rec_loss"]).epsilon(1e-5));
  CHECK(found[0]["gen_grad_norm"] == Approx(found[1]["gen_grad_norm"]).epsilon(1e-4));
  CHECK_THAT(weights[0], test::AllClose(weights[1], {2e-5, 0}));
}

}  // namespace
}  // namespace vgen::train
