#include "vgen/infer/load_gpt.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <filesystem>

#include "gpt/golden_gpt.h"
#include "support/golden.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/checkpoint/store.h"
#include "vgen/infer/gpt_generate.h"
#include "vgen/io/safetensors.h"

namespace vgen {

using Catch::Matchers::Contains;
using infer::load_gpt;
using test::golden;
using test::golden_tensor;

namespace {

io::StateDict state_of(const gpt::Transformer& model) {
  io::StateDict state;
  state.source = "test";
  state.tensors = checkpoint::as_arrays(checkpoint::named_state(*model));
  return state;
}

}  // namespace

TEST_CASE("load gpt: an official checkpoint samples the golden's greedy tokens",
          "[infer][golden]") {
  const auto loaded = load_gpt(golden("gpt_c2i/ckpt.pt"), {.n_head = 2, .block_size = 36});
  CHECK(loaded.weights_key == "model");
  const gpt::GptConfig& config = loaded.weights.config;
  CHECK(config.vocab_size == 128);
  CHECK(config.num_classes == 10);
  CHECK(config.ffn_dim() == 192);
  CHECK(config.num_kv_heads() == 2);
  auto engine = make_gpt_engine(loaded.weights, {.num_slots = 6});
  std::vector<infer::GenerateRequest> requests;
  const auto label_B = golden_tensor("gpt_c2i/gen_labels.npy");
  for (int64_t b = 0; b < label_B.size(0); ++b) {
    requests.push_back({.prompt = {.label = label_B[b].item<int64_t>()}});
  }
  CHECK_THAT(generate(*engine, requests, {.cfg_scale = 4, .filter = {.top_k = 1}}),
             test::AllClose(golden_tensor("gpt_c2i/greedy_cfg4.npy"), test::kExact));
}

TEST_CASE("load gpt: configs read off the weights", "[infer]") {
  for (const char* name : {"gpt_c2i", "gpt_gqa", "gpt_t2i_8"}) {
    INFO(name);
    const gpt::GptConfig expected = test::golden_config(name);
    const auto state = io::load_state_dict(golden(std::string(name) + "/ckpt.safetensors"));
    const gpt::GptConfig config = infer::infer_gpt_config(state, expected.n_head);
    CHECK(config.model_type == expected.model_type);
    CHECK(config.dim == expected.dim);
    CHECK(config.n_layer == expected.n_layer);
    CHECK(config.vocab_size == expected.vocab_size);
    CHECK(config.num_kv_heads() == expected.num_kv_heads());
    CHECK(config.ffn_dim() == expected.ffn_dim());
    CHECK(config.cls_token_num == expected.cls_token_num);
    if (config.model_type == "c2i") CHECK(config.num_classes == expected.num_classes);
    if (config.model_type == "t2i") CHECK(config.caption_dim == expected.caption_dim);
  }
  // The training arguments in an official file tell the grid: 64 pixels, 16 to a code.
  const auto official = load_gpt(golden("gpt_c2i/ckpt.pt"), {.n_head = 2});
  CHECK(official.weights.config.block_size == 16);
}

TEST_CASE("load gpt: weights without a null class, where files tell", "[infer]") {
  constexpr int64_t kLast = 9;  // of 10 classes, in 10 rows
  const std::string bare = golden("train_gpt/final.safetensors");
  const test::TempDir dir;
  test::write_file(dir / "gpt.yaml",
                   "{dim: 32, n_layer: 2, n_head: 2, multiple_of: 32, vocab_size: 64, "
                   "block_size: 16, num_classes: 10, class_dropout_prob: 0}");
  const auto official = load_gpt(golden("train_gpt/step5.pt"), {.n_head = 2});
  const auto with_config = load_gpt(bare, {.config = dir / "gpt.yaml"});
  for (const auto* loaded : {&official, &with_config}) {
    INFO(loaded->source);
    CHECK(loaded->weights.config.num_classes == 10);
    CHECK(loaded->weights.config.class_dropout_prob == 0);
    auto engine = make_gpt_engine(loaded->weights, {.num_slots = 2});
    const std::vector<infer::GenerateRequest> requests = {{.prompt = {.label = kLast}}};
    CHECK(generate(*engine, requests, {.cfg_scale = 1}).numel() == 16);
    CHECK_THAT(test::error_of([&] { generate(*engine, requests, {.cfg_scale = 2}); }),
               Contains("has no null class to guide with; use a cfg-scale of 1"));
  }
  // Nothing tells it: the last row is taken for the null class.
  CHECK(load_gpt(bare, {.n_head = 2}).weights.config.num_classes == 9);
}

TEST_CASE("load gpt: the grid that was trained on, where files tell", "[infer]") {
  const auto official = load_gpt(golden("gpt_c2i/ckpt.pt"), {.n_head = 2, .block_size = 36});
  CHECK(official.weights.config.block_size == 36);
  CHECK(official.trained.block_size == 16);
  CHECK(official.trained.downsample == 16);
  CHECK(official.trained.block_size_from == "args.image_size");
  CHECK(official.trained.downsample_from == "args.downsample_size");

  const std::string bare = golden("gpt_c2i/ckpt.safetensors");
  CHECK(load_gpt(bare, {.n_head = 2, .block_size = 36}).trained.block_size == 0);
  const test::TempDir dir;
  test::write_file(dir / "gpt.yaml", dump_config(test::golden_config("gpt_c2i")));
  const auto with_config = load_gpt(bare, {.config = dir / "gpt.yaml", .block_size = 16});
  CHECK(with_config.weights.config.block_size == 16);
  CHECK(with_config.trained.block_size == 36);
  CHECK(with_config.trained.downsample == 0);
  CHECK(with_config.trained.block_size_from == dir / "gpt.yaml");
  // A config that leaves the grid out does not tell it.
  test::write_file(dir / "part.yaml",
                   "dim: 64\nn_layer: 2\nn_head: 2\nmultiple_of: 64\nvocab_size: 128\n"
                   "num_classes: 10\n");
  CHECK(load_gpt(bare, {.config = dir / "part.yaml"}).trained.block_size == 0);
}

TEST_CASE("load gpt: heads come from the published size", "[infer]") {
  gpt::GptConfig config = gpt::gpt_size("B");
  config.vocab_size = 32;
  const auto state = state_of(gpt::Transformer(config));
  CHECK(infer::infer_gpt_config(state).n_head == 12);
  CHECK(infer::infer_gpt_config(state).block_size == 256);
  CHECK(test::error_of([&] { infer::infer_gpt_config(state, 7); }) ==
        "test: 7 heads do not fit: layers.0.attention.wqkv.weight has 2304 rows, dim is 768");
}

TEST_CASE("load gpt: a run folder, its newest checkpoint, averaged weights first", "[infer]") {
  const test::TempDir dir;
  const std::string run = dir / "run";
  auto model = test::golden_gpt("gpt_c2i");
  std::filesystem::create_directories(run + "/checkpoints");
  test::write_file(run + "/config.yaml", "task: gpt\nsteps: 5\n" + dump_config(model->config()));
  std::string yaml = "task: gpt\nmodel:\n";
  for (const std::string& line : split(dump_config(model->config()), '\n')) {
    if (!line.empty()) yaml += "  " + line + "\n";
  }
  test::write_file(run + "/config.yaml", yaml);
  checkpoint::CheckpointStore store(run + "/checkpoints", {});
  auto average = test::golden_gpt("gpt_c2i");
  {
    const torch::NoGradGuard no_grad;
    average->named_parameters()["norm.weight"].fill_(0.5);
  }
  store.save({.step = 7,
              .files = {{"model.safetensors", checkpoint::named_state(*model)},
                        {"ema.safetensors", checkpoint::named_state(*average)}},
              .state = io::Json::object(),
              .metrics = {}});
  const auto loaded = load_gpt(run);
  CHECK(loaded.step == 7);
  CHECK(loaded.weights_key == "ema");
  CHECK(loaded.weights.config.block_size == 36);
  CHECK(loaded.weights.at("norm.weight")[0].item<float>() == 0.5f);
  CHECK(load_gpt(run, {.weights = "model"}).weights.at("norm.weight")[0].item<float>() != 0.5f);
}

TEST_CASE("load gpt: what does not fit is named", "[infer]") {
  const std::string path = golden("gpt_c2i/ckpt.safetensors");
  const auto error_with = [&](const infer::GptOptions& options, const std::string& file) {
    return test::error_of([&] { load_gpt(file, options); });
  };
  CHECK(error_with({}, path) ==
        path +
            ": 2 layers of width 64 are none of the published sizes, and no shape tells the "
            "number of heads; give it with --n-head, or the whole config with --config");
  // Whether or not the size's heads divide the width.
  const std::string found = path + ": has 2 layers of width 64, but GPT-";
  CHECK(error_with({.config = "B"}, path) == found + "B has 12 of width 768");
  CHECK(error_with({.config = "L"}, path) == found + "L has 24 of width 1024");
  CHECK_THAT(error_with({.config = "M"}, path), Contains("GPT size 'M': expected one of B, L"));
  CHECK_THAT(error_with({.config = "none.yaml"}, path), Contains("none.yaml: no such file"));
  CHECK_THAT(error_with({.n_head = 2, .block_size = 35}, path), Contains("not the square"));
  CHECK_THAT(error_with({}, "nowhere.pt"), Contains("nowhere.pt: no such file or folder"));
  CHECK_THAT(error_with({}, golden("vq16/ckpt.safetensors")),
             Contains("not the weights of a LlamaGen GPT"));
  // Another size than the config says: the dimensions that differ are told.
  const test::TempDir dir;
  gpt::GptConfig other = test::golden_config("gpt_c2i");
  other.dim = 128;
  other.num_classes = 12;
  test::write_file(dir / "other.yaml", dump_config(other));
  CHECK_THAT(error_with({.config = dir / "other.yaml"}, path),
             Contains("cls_embedding.embedding_table.weight is [11, 64], expected [13, 128]") &&
                 Contains("and") && Contains("more"));
}

}  // namespace vgen
