// Training of the GPT: the official code's steps, whole runs on small codes, and what is refused.

#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <map>
#include <regex>

#include "codes/codes_support.h"
#include "eval/picture_support.h"
#include "support/golden.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/core/strings.h"
#include "vgen/dist/activation_checkpoint.h"
#include "vgen/gpt/transformer.h"
#include "vgen/io/json.h"
#include "vgen/io/torch_file.h"
#include "vgen/tensor/autocast.h"
#include "vgen/train/gpt_task.h"
#include "vgen/train/run.h"
#include "vgen/train/trainer.h"

namespace vgen::train {
namespace {

using Catch::Contains;
using test::error_of;
using test::golden;
using test::golden_tensor;
namespace fs = std::filesystem;

/// The settings of golden/train_gpt/meta.json.
GptRunConfig golden_config() {
  GptRunConfig config;
  config.run.steps = 10;
  config.run.global_batch_size = 4;
  config.run.precision = "fp32";
  config.model = {.vocab_size = 64,
                  .block_size = 16,
                  .n_layer = 2,
                  .n_head = 2,
                  .dim = 32,
                  .multiple_of = 32,
                  .token_dropout_p = 0,
                  .resid_dropout_p = 0,
                  .ffn_dropout_p = 0,
                  .num_classes = 10,
                  .class_dropout_prob = 0};
  config.optimizer = {.kind = "adamw", .lr = 1e-3, .weight_decay = 0.05, .decay_min_dims = 2};
  return config;
}

/// The golden batches instead of a loader's, from `first_step` on, each in `count` micro-batches.
class GoldenTask : public GptTask {
 public:
  explicit GoldenTask(const GptRunConfig& config, const std::string& weights, int64_t first_step)
      : GptTask(config, {.micro_batch_size = 4, .seed = 5, .is_training = false}),
        next_(first_step) {
    if (!weights.empty()) init_from(golden(weights));
  }
  void next_batches(int64_t count) override {
    const auto codes = code_SBN_[next_].chunk(count);
    const auto labels = label_SB_[next_].chunk(count);
    std::vector<codes::CodeBatch> batches;
    int64_t index = 0;
    for (size_t i = 0; i < codes.size(); ++i) {
      batches.push_back({codes[i], labels[i], {}});
      for (int64_t b = 0; b < labels[i].size(0); ++b) batches.back().index.push_back(index++);
    }
    set_batches(std::move(batches));
    ++next_;
  }
  int64_t batches_per_epoch() const override { return 10; }
  data::LoaderPosition position() const override { return {}; }
  void seek(const data::LoaderPosition& /*position*/) override {}

 private:
  torch::Tensor code_SBN_ = golden_tensor("train_gpt/codes.npy");
  torch::Tensor label_SB_ = golden_tensor("train_gpt/labels.npy");
  int64_t next_;
};

/// Steps until the last golden one; each loss and gradient norm, then the weights.
void check_trace(Trainer& trainer, int64_t first_step) {
  const torch::Tensor loss_S = golden_tensor("train_gpt/loss.npy");
  const torch::Tensor norm_S = golden_tensor("train_gpt/grad_norm.npy");
  for (int64_t step = first_step; step < loss_S.size(0); ++step) {
    std::map<std::string, double> found;
    for (const auto& [name, value] : trainer.step()) found[name] = value.item<double>();
    INFO("step " << step + 1);
    CHECK(found.at("loss") == Approx(loss_S[step].item<double>()).epsilon(1e-5));
    CHECK(found.at("grad_norm") == Approx(norm_S[step].item<double>()).epsilon(1e-4));
  }
  const io::StateDict expected = io::load_state_dict(golden("train_gpt/final.safetensors"));
  const auto state = checkpoint::named_state(trainer.task().model());
  REQUIRE(state.size() == expected.tensors.size());
  for (const auto& [name, tensor, sizes, begin] : state) {
    const io::Array* array = expected.find(name);
    REQUIRE(array != nullptr);
    INFO(name);
    CHECK_THAT(tensor, test::AllClose(checkpoint::as_tensor(*array), {2e-5, 1e-4}));
  }
}

TEST_CASE("gpt training: a checkpointed block drops the same elements again", "[train]") {
  gpt::GptConfig config = golden_config().model;
  config.resid_dropout_p = config.ffn_dropout_p = 0.3;
  gpt::Transformer model(config);
  {
    const torch::NoGradGuard no_grad;
    for (auto& parameter : model->parameters()) parameter.normal_(0, 0.1);
  }
  const auto code_BN = torch::randint(config.vocab_size, {4, config.block_size}, torch::kLong);
  const auto label_B = torch::randint(config.num_classes, {4}, torch::kLong);
  const auto gradients = [&](BlockRunner* runner) {
    const BlockRunnerGuard guard(runner);
    torch::manual_seed(4);
    const gpt::GptBatch batch{.code_BN = code_BN, .condition = label_B};
    return torch::autograd::grad({gpt::gpt_loss(model(batch), code_BN)}, model->parameters());
  };
  dist::CheckpointRunner checkpoints;
  const auto expected = gradients(nullptr), actual = gradients(&checkpoints);
  for (size_t i = 0; i < expected.size(); ++i) CHECK(torch::equal(actual[i], expected[i]));
}

TEST_CASE("gpt training: losses, gradients and weights of the official code", "[train][golden]") {
  GptRunConfig config = golden_config();
  const int64_t micro_batches = GENERATE(1, 2);
  config.run.grad_accum_steps = micro_batches;
  GoldenTask task(config, "train_gpt/init.pt", 0);
  const auto strategy = dist::single_process();
  Trainer trainer(config.run, task, *strategy, torch::kCPU);
  check_trace(trainer, 0);
}

// The official optimizer numbers its parameters by group: matrices first, then vectors.
TEST_CASE("gpt training: goes on from an official checkpoint's optimizer", "[train][golden]") {
  const GptRunConfig config = golden_config();
  GoldenTask task(config, "train_gpt/step5.pt", 5);
  const auto strategy = dist::single_process();
  Trainer trainer(config.run, task, *strategy, torch::kCPU);

  std::vector<std::string> names;
  const auto parameters = checkpoint::named_parameters(task.model());
  for (const bool is_matrix : {true, false}) {
    for (const auto& [name, tensor, sizes, begin] : parameters) {
      if ((tensor.dim() >= 2) == is_matrix) names.push_back(name);
    }
  }
  std::map<std::string, torch::Tensor> official;
  const io::TorchFile file(golden("train_gpt/step5.pt"));
  for (const auto& leaf : file.flatten(file.root())) {
    const auto* tensor = std::get_if<std::unique_ptr<io::TorchTensor>>(&leaf.value->data);
    if (tensor == nullptr || !leaf.name.starts_with("optimizer.state.")) continue;
    const auto words = split(leaf.name, '.');  // optimizer, state, id, field
    official[str_cat(words.at(3), ".", names.at(std::stoul(words.at(2))))] =
        checkpoint::as_tensor(file.read(**tensor));
  }
  REQUIRE(official.size() == 3 * names.size());
  const checkpoint::Snapshot snapshot = trainer.snapshot();
  REQUIRE(snapshot.files.back().name == "optimizer.safetensors");
  for (auto [name, tensor, sizes, begin] : snapshot.files.back().tensors) {
    if (name == "step") {
      tensor.fill_(5);
    } else {
      tensor.copy_(official.at(name));
    }
  }
  check_trace(trainer, 5);
}

/// A folder with codes of the golden tokenizer's kind and a config that learns them.
class SmallRun {
 public:
  SmallRun() {
    codes::CodeInfo info = test::square_info(128);
    info.tokenizer = infer::load_tokenizer(tokenizer_).model->fingerprint();
    test::write_codes(dir_ / "codes", info, 12, 5);
    info.tokenizer = "vqgan-0123456789abcdef";
    test::write_codes(dir_ / "foreign", info, 12, 5);
    test::write_file(
        dir_ / "small.yaml",
        str_cat("task: gpt\nsteps: 6\nglobal_batch_size: 4\nprecision: fp32\n"
                "threads: 1\nlog_every: 1\nema_decay: 0.5\n"
                "model: {vocab_size: 128, block_size: 16, n_layer: 2, n_head: 2, dim: "
                "32, multiple_of: 32, num_classes: 3, class_dropout_prob: 0.5}\n"
                "tokenizer: {path: ",
                tokenizer_, "}\ndata: {train: ", dir_ / "codes", ", val: ", dir_ / "codes",
                "}\noptimizer: {kind: adamw, lr: 1e-2, decay_min_dims: 2}\n"
                "preview: {num_images: 6, columns: 3, cfg_scale: 2}\n"
                "checkpoint: {every: 2, keep_last: 0}\n"));
  }

  TrainResult train(const std::string& name, std::vector<std::string> overrides = {},
                    const std::string& resume = "never") const {
    return run({dir_ / "small.yaml", std::move(overrides), dir_ / name, resume});
  }
  std::string error(std::vector<std::string> overrides) const {
    std::string message = error_of([&] { train("refused", std::move(overrides)); });
    CHECK_FALSE(fs::exists(dir_ / "refused"));
    return message;
  }
  std::string path(const std::string& name) const { return dir_ / name; }

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
  std::string weights(const std::string& name) const {
    return test::read_file(dir_ / name + "/checkpoints/step_0000006/model.safetensors");
  }

 private:
  std::string tokenizer_ = golden("vq16/ckpt.safetensors");
  test::TempDir dir_;
};

TEST_CASE("gpt training: a run learns, validates and draws", "[train]") {
  const SmallRun small;
  const TrainResult result = small.train("r", {"steps=60", "checkpoint.every=60"});
  CHECK(result.is_complete);
  const auto losses = small.values("r", "train/loss");
  CHECK(losses.at(1) == Approx(std::log(128.0)).epsilon(1e-5));  // the output layer begins at 0
  CHECK(losses.at(60) < 0.8 * losses.at(1));
  CHECK(result.metrics.at("loss") < losses.at(1));
  CHECK(result.metrics.at("accuracy") > 2.0 / 128);
  CHECK(result.metrics.at("accuracy") <= 1);
  CHECK(small.values("r", "train/tokens_per_s").at(60) > 0);
  CHECK(small.values("r", "train/mfu").at(60) > 0);
  const auto waits = small.values("r", "train/data_wait_share");
  CHECK(waits.size() >= 59);
  for (const auto& [step, share] : waits) {
    INFO("step " << step);
    CHECK(share >= 0);
    CHECK(share < 1);
  }
  // The same for people, on a line with the step and the loss.
  const std::string log = test::read_file(small.path("r/log.txt"));
  CAPTURE(log);
  CHECK(std::regex_search(
      log, std::regex("60/60 steps .*loss [0-9.]+ .*[1-9][0-9]* tokens/s . MFU [0-9]+ % . data "
                      "wait [0-9]+ %")));

  // The preview: 3 x 2 pictures of 4 x 4 codes of 16 pixels, 2 white pixels around each.
  const torch::Tensor grid_HW3 = test::read_picture(small.path("r/samples/step_0000060.png"));
  REQUIRE(grid_HW3.sizes().vec() == std::vector<int64_t>{2 + 2 * 66, 2 + 3 * 66, 3});
  std::vector<torch::Tensor> tiles;
  for (int64_t i = 0; i < 6; ++i) {
    INFO("tile " << i);
    const torch::Tensor tile =
        grid_HW3.narrow(0, 2 + i / 3 * 66, 64).narrow(1, 2 + i % 3 * 66, 64).to(torch::kFloat32);
    CHECK(tile.std().item<double>() > 5);
    tiles.push_back(tile);
  }
  CHECK_FALSE(tiles.front().equal(tiles.back()));  // of different classes
}

TEST_CASE("gpt training: a resumed run goes on bit for bit", "[train]") {
  const SmallRun small;
  small.train("whole");
  small.train("cut", {"steps=3"});
  small.train("cut", {}, "auto");
  CHECK(small.weights("whole") == small.weights("cut"));
  CHECK(small.values("whole", "train/loss") == small.values("cut", "train/loss"));
  small.train("seed", {"seed=1"});
  CHECK(small.weights("whole") != small.weights("seed"));
}

// The last layer of a new model is zero.
void make_output_matter(torch::nn::Module& model) {
  const torch::NoGradGuard no_grad;
  model.named_parameters()["output.weight"].normal_();
}

TEST_CASE("gpt training: dropped labels do not depend on micro-batches", "[train]") {
  GptRunConfig config = golden_config();
  std::map<int64_t, std::vector<double>> losses;
  for (const double dropped : {1e-9, 0.5}) {
    config.model.class_dropout_prob = dropped;
    for (const int64_t count : {1, 4}) {
      config.run.grad_accum_steps = count;
      torch::manual_seed(3);
      GoldenTask task(config, "", 0);
      make_output_matter(task.model());
      const auto strategy = dist::single_process();
      Trainer trainer(config.run, task, *strategy, torch::kCPU);
      losses[count].push_back(trainer.step().front().second.item<double>());
    }
  }
  CHECK(losses[1][0] == Approx(losses[4][0]).epsilon(1e-6));
  CHECK(losses[1][1] == Approx(losses[4][1]).epsilon(1e-6));
  CHECK(losses[1][0] != Approx(losses[1][1]).epsilon(1e-6));  // the null class was read
}

TEST_CASE("gpt training: the operations of a sample are counted by hand", "[train]") {
  const GptRunConfig config = golden_config();
  GoldenTask task(config, "", 0);
  // Per layer: wqkv 32 x 96, wo 32 x 32, three FFN matrices of 32 x 96; and the output, 32 x 64.
  const double weights = 2 * (32 * 96 + 32 * 32 + 3 * 32 * 96) + 32 * 64;
  CHECK(config.model.ffn_dim() == 96);
  CHECK(task.workload().tokens_per_sample == 16);
  CHECK(task.workload().flops_per_sample == 16 * (6 * weights + 12 * 2 * 32 * 16));
}

TEST_CASE("autocast: what was before comes back, also after an exception", "[train]") {
  const auto a = torch::ones({2, 2});
  try {
    const Autocast outer(torch::kCPU, torch::kBFloat16);
    CHECK(a.mm(a).scalar_type() == torch::kBFloat16);
    {
      const Autocast inner(torch::kCPU, torch::kFloat32);
      CHECK(a.mm(a).scalar_type() == torch::kFloat32);
    }
    CHECK(a.mm(a).scalar_type() == torch::kBFloat16);
    throw_error(ErrorCode::kInternal, "for the test");
  } catch (const Error&) {
  }
  CHECK(a.mm(a).scalar_type() == torch::kFloat32);
}

TEST_CASE("gpt training: bf16 and init_from", "[train]") {
  const SmallRun small;
  small.train("wide");
  small.train("r", {"precision=bf16"});
  const auto wide = small.values("wide", "train/loss"), narrow = small.values("r", "train/loss");
  CHECK(narrow.at(6) != wide.at(6));
  CHECK(narrow.at(6) == Approx(wide.at(6)).epsilon(0.02));
  const std::string weights = small.path("r/checkpoints/step_0000006/model.safetensors");
  small.train("next", {"init_from=" + weights, "optimizer.lr=0"});
  CHECK(small.weights("next") == test::read_file(weights));
  // The run folder: the weights of its newest checkpoint, not the averages.
  small.train("again", {"init_from=" + small.path("r"), "optimizer.lr=0"});
  CHECK(small.weights("again") == test::read_file(weights));
}

TEST_CASE("gpt training: the checkpoint of the lowest validation loss is kept", "[train]") {
  const SmallRun small;
  const std::vector<std::string> common = {"checkpoint.keep_last=1", "validate_every=2"};
  const auto with = [&](std::vector<std::string> overrides) {
    overrides.insert(overrides.end(), common.begin(), common.end());
    return overrides;
  };
  small.train("r", with({"steps=2"}));
  small.train("r", with({"steps=4", "optimizer.lr=1"}), "auto");  // far too high
  const auto losses = small.values("r", "val/loss");
  REQUIRE(losses.at(4) > losses.at(2));
  CHECK(test::files_in(small.path("r/checkpoints")) ==
        std::vector<std::string>{"latest", "step_0000002", "step_0000004"});
  CHECK_THAT(test::read_file(small.path("r/log.txt")), !Contains("best_metric"));

  // A name that there is no value of is still told.
  small.train("named", with({"steps=2", "checkpoint.best_metric=psnr"}));
  CHECK_THAT(test::read_file(small.path("named/log.txt")),
             Contains("checkpoint.best_metric is psnr, which this validation does not have"));
}

TEST_CASE("gpt training: what does not fit together is refused by name", "[train]") {
  const SmallRun small;
  CHECK_THAT(small.error({"data.train=" + small.path("foreign")}),
             Contains("vqgan-0123456789abcdef"));
  CHECK_THAT(small.error({"model.vocab_size=64"}), Contains("vocab_size is 64") && Contains("128"));
  CHECK_THAT(small.error({"model.block_size=25"}), Contains("[4, 4]") && Contains("[5, 5]"));
  CHECK_THAT(small.error({"model.num_classes=2"}), Contains("classes"));
  CHECK_THAT(small.error({"data.train=/no/such/codes"}), Contains("/no/such/codes"));
  CHECK_THAT(small.error({"data.train="}), Contains("data.train is empty"));
  CHECK_THAT(small.error({"tokenizer.path=/no/such/file"}), Contains("/no/such/file"));
  CHECK_THAT(small.error({"model.n_head=5"}), Contains("n_head"));
  CHECK(small.error({"model.model_type=t2i"}) ==
        "--set model.model_type=t2i: 'model.model_type': expected c2i; found 't2i'");
  CHECK(small.error({"preview.top_p=0"}) ==
        "--set preview.top_p=0: 'preview.top_p': expected more than 0, at most 1, found '0'");
  test::write_file(small.path("t2i.yaml"), "include: small.yaml\nmodel:\n  model_type: t2i\n");
  CHECK_THAT(error_of([&] {
               resolved_config({small.path("t2i.yaml"), {}, "", "never"});
             }),
             Contains("t2i.yaml:3: 'model.model_type': expected c2i"));
  CHECK_THAT(small.error({"model.class_dropout_prob=0"}), Contains("null class"));
  CHECK_THAT(small.error({"task=gtp"}), Contains("gpt"));
  const std::string wider = golden("gpt_c2i/ckpt.safetensors");
  CHECK_THAT(small.error({str_cat("init_from=", wider)}),
             Contains(wider + ": the tensors are not those of this model: ") &&
                 Contains("cls_embedding.embedding_table.weight is [11, 64], expected [4, 32]"));
}

}  // namespace
}  // namespace vgen::train
