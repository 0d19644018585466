#include "vgen/gpt/transformer.h"

#include <torch/csrc/autograd/profiler_legacy.h>

#include <cmath>
#include <sstream>

#include "gpt/golden_gpt.h"
#include "support/golden.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/tensor/autocast.h"

namespace vgen {

using Catch::Contains;
using test::golden_tensor;

namespace {

// Greedy decoding without a cache: what any engine must reproduce. Tokens of the conditional row,
// guided as `u + (c - u) * cfg_scale` while i <= cfg_interval + 1 (always when it is -1).
struct Greedy {
  torch::Tensor token_BN, logits_BNV;
};
Greedy greedy_decode(gpt::Transformer& model, gpt::GptBatch batch,
                     const torch::Tensor& null_condition, int64_t num_tokens, double cfg_scale,
                     int64_t cfg_interval) {
  const torch::NoGradGuard no_grad;
  const int64_t num_rows = batch.condition.size(0);
  const bool is_guided = cfg_scale > 1;
  if (is_guided) {
    batch.condition = torch::cat({batch.condition, null_condition});
    if (batch.mask_B1SS.defined()) batch.mask_B1SS = torch::cat({batch.mask_B1SS, batch.mask_B1SS});
  }
  const auto mask_B1SS = batch.mask_B1SS;
  auto token_BN = torch::zeros({num_rows, 0}, torch::kLong);
  std::vector<torch::Tensor> all_logits;
  for (int64_t i = 0; i < num_tokens; ++i) {
    // The last column of code_BN is only predicted, so a place holder goes there.
    auto code_BN = torch::cat({token_BN, torch::zeros({num_rows, 1}, torch::kLong)}, 1);
    batch.code_BN = is_guided ? torch::cat({code_BN, code_BN}) : code_BN;
    if (mask_B1SS.defined()) {
      const int64_t length = model->config().cls_token_num + i;
      batch.mask_B1SS = mask_B1SS.slice(2, 0, length).slice(3, 0, length);
    }
    auto logits = model(batch).select(1, i);
    if (is_guided) {
      const auto conditional = logits.slice(0, 0, num_rows), free = logits.slice(0, num_rows);
      const bool is_in_interval = cfg_interval < 0 || i <= cfg_interval + 1;
      logits = is_in_interval ? free + (conditional - free) * cfg_scale : conditional;
    }
    all_logits.push_back(logits);
    token_BN = torch::cat({token_BN, logits.argmax(-1, /*keepdim=*/true)}, 1);
  }
  return {token_BN, torch::stack(all_logits, 1)};
}

}  // namespace

TEST_CASE("gpt: parameter counts of the published sizes", "[gpt]") {
  // The large ones from the formula alone: embeddings, layers, norm, head.
  const auto count = [](const gpt::GptConfig& c) {
    const int64_t layer = c.dim * (c.n_head + 2 * c.num_kv_heads()) * c.head_dim() + c.dim * c.dim +
                          3 * c.dim * c.ffn_dim() + 2 * c.dim;
    return (c.num_classes + 1 + 2 * c.vocab_size + 1) * c.dim + c.n_layer * layer;
  };
  CHECK(count(gpt::gpt_size("B")) == 110888448);
  CHECK(count(gpt::gpt_size("L")) == 342910976);
  CHECK(count(gpt::gpt_size("XL")) == 774699520);
  CHECK(count(gpt::gpt_size("XXL")) == 1410972672);
  CHECK(count(gpt::gpt_size("XXXL")) == 3893027840);
  CHECK(count(gpt::gpt_size("1B")) == 1199616000);
  CHECK(count(gpt::gpt_size("3B")) == 3096659200);
  CHECK(count(gpt::gpt_size("7B")) == 6614589440);

  gpt::GptConfig config = gpt::gpt_size("B");
  const gpt::Transformer model(config);
  int64_t num_parameters = 0;
  for (const auto& parameter : model->parameters()) num_parameters += parameter.numel();
  CHECK(num_parameters == 110888448);
  CHECK(model->named_parameters().size() == 88);
  CHECK(model->blocks().size() == 12);
}

TEST_CASE("gpt: logits and losses of the official code, class-conditional", "[gpt][golden]") {
  const std::string name = GENERATE(as<std::string>(), "gpt_c2i", "gpt_gqa");
  INFO(name);
  auto model = test::golden_gpt(name);
  gpt::GptBatch batch;
  batch.code_BN = golden_tensor(name + "/codes.npy");
  batch.condition = golden_tensor(name + "/labels.npy");
  const torch::NoGradGuard no_grad;
  const auto logits_BNV = model(batch);
  CHECK_THAT(logits_BNV, test::AllClose(golden_tensor(name + "/logits.npy"), test::kParity));
  const auto expected_loss = golden_tensor(name + "/loss.npy");
  CHECK_THAT(gpt::gpt_loss(logits_BNV, batch.code_BN).view_as(expected_loss),
             test::AllClose(expected_loss, test::kParity));
}

TEST_CASE("gpt: logits and losses of the official code, text-conditional", "[gpt][golden]") {
  const std::string name = "gpt_t2i_8";
  auto model = test::golden_gpt(name);
  gpt::GptBatch batch;
  batch.code_BN = golden_tensor(name + "/codes.npy");
  batch.condition = golden_tensor(name + "/captions.npy");
  batch.mask_B1SS =
      gpt::caption_attention_mask(golden_tensor(name + "/emb_masks.npy"), batch.code_BN.size(1));
  CHECK(torch::equal(batch.mask_B1SS, golden_tensor(name + "/attn_mask.npy")));
  const torch::NoGradGuard no_grad;
  const auto logits_BNV = model(batch);
  CHECK_THAT(logits_BNV, test::AllClose(golden_tensor(name + "/logits.npy"), test::kParity));
  const auto loss = gpt::gpt_loss(logits_BNV, batch.code_BN, golden_tensor(name + "/valid.npy"));
  const auto expected_loss = golden_tensor(name + "/loss.npy");
  CHECK_THAT(loss.view_as(expected_loss), test::AllClose(expected_loss, test::kParity));
}

TEST_CASE("gpt: greedy tokens of the official code, class-conditional", "[gpt][golden]") {
  const std::string name = GENERATE(as<std::string>(), "gpt_c2i", "gpt_gqa");
  INFO(name);
  auto model = test::golden_gpt(name);
  gpt::GptBatch batch;
  batch.condition = golden_tensor(name + "/gen_labels.npy");
  const auto null_condition = torch::full_like(batch.condition, model->config().num_classes);
  const int64_t num_tokens = model->config().block_size;
  const auto tokens = [&](double cfg_scale, int64_t cfg_interval) {
    return greedy_decode(model, batch, null_condition, num_tokens, cfg_scale, cfg_interval);
  };
  CHECK_THAT(tokens(1, -1).token_BN,
             test::AllClose(golden_tensor(name + "/greedy_cfg1.npy"), test::kExact));
  const Greedy guided = tokens(4, -1);
  CHECK_THAT(guided.token_BN,
             test::AllClose(golden_tensor(name + "/greedy_cfg4.npy"), test::kExact));
  CHECK_THAT(guided.logits_BNV,
             test::AllClose(golden_tensor(name + "/greedy_cfg4_logits.npy"), test::kParity));
  CHECK_THAT(tokens(4, 3).token_BN,
             test::AllClose(golden_tensor(name + "/greedy_cfg4_interval3.npy"), test::kExact));
}

TEST_CASE("gpt: greedy tokens of the official code, text-conditional", "[gpt][golden]") {
  const std::string name = "gpt_t2i_8";
  auto model = test::golden_gpt(name);
  gpt::GptBatch batch;
  batch.condition = golden_tensor(name + "/captions.npy");
  batch.mask_B1SS = gpt::caption_attention_mask(golden_tensor(name + "/emb_masks.npy"),
                                                model->config().block_size);
  const auto null_condition =
      model->named_buffers()["cls_embedding.uncond_embedding"].unsqueeze(0).expand_as(
          batch.condition);
  const int64_t num_tokens = model->config().block_size;
  CHECK_THAT(greedy_decode(model, batch, null_condition, num_tokens, 1, -1).token_BN,
             test::AllClose(golden_tensor(name + "/greedy_cfg1.npy"), test::kExact));
  CHECK_THAT(greedy_decode(model, batch, null_condition, num_tokens, 7.5, -1).token_BN,
             test::AllClose(golden_tensor(name + "/greedy_cfg7.5.npy"), test::kExact));
  batch.mask_B1SS = torch::Tensor();
  CHECK_THAT(greedy_decode(model, batch, null_condition, num_tokens, 7.5, -1).token_BN,
             test::AllClose(golden_tensor(name + "/greedy_nomask.npy"), test::kExact));
}

TEST_CASE("gpt: a later token never changes an earlier logit", "[gpt]") {
  auto model = test::golden_gpt("gpt_c2i");
  gpt::GptBatch batch;
  batch.code_BN = golden_tensor("gpt_c2i/codes.npy");
  batch.condition = golden_tensor("gpt_c2i/labels.npy");
  const torch::NoGradGuard no_grad;
  const auto before = model(batch);
  batch.code_BN.select(1, 20).add_(1).remainder_(128);
  const auto after = model(batch);
  CHECK_THAT(after.slice(1, 0, 21), test::AllClose(before.slice(1, 0, 21), test::kFloat32));
  CHECK_FALSE(torch::allclose(after.select(1, 21), before.select(1, 21)));  // the change was seen
}

TEST_CASE("gpt: an untrained model is maximally unsure", "[gpt]") {
  torch::manual_seed(0);
  gpt::GptConfig config = test::golden_config("gpt_c2i");
  gpt::Transformer model(config);
  gpt::GptBatch batch;
  batch.code_BN = torch::randint(config.vocab_size, {2, config.block_size}, torch::kLong);
  batch.condition = torch::tensor({0, 10});
  CHECK(gpt::gpt_loss(model(batch), batch.code_BN).item<double>() ==
        Approx(std::log(128.0)).epsilon(1e-6));
  const auto weight = model->named_parameters()["layers.0.attention.wqkv.weight"];
  CHECK(weight.std().item<double>() == Approx(0.02).epsilon(0.05));
}

namespace {

gpt::GptBatch random_batch(const gpt::GptConfig& config, int64_t batch_size) {
  gpt::GptBatch batch;
  batch.code_BN = torch::randint(config.vocab_size, {batch_size, config.block_size}, torch::kLong);
  batch.condition = torch::randint(config.num_classes, {batch_size}, torch::kLong);
  return batch;
}

// A model whose last layer is not zero, without gradients.
gpt::Transformer random_gpt(const gpt::GptConfig& config) {
  gpt::Transformer model(config);
  for (auto& parameter : model->parameters()) parameter.set_requires_grad(false);
  model->named_parameters()["output.weight"].normal_();
  return model;
}

// What the FFN and the attention of a layer add is multiplied by these.
void scale_branches(gpt::Transformer& model, int64_t layer, double attention, double ffn) {
  const std::string name = "layers." + std::to_string(layer);
  model->named_parameters()[name + ".attention.wo.weight"].mul_(attention);
  model->named_parameters()[name + ".feed_forward.w2.weight"].mul_(ffn);
}

// Which samples have these logits: bool (B).
torch::Tensor is_like(const torch::Tensor& logits_BNV, const torch::Tensor& expected_BNV) {
  return (logits_BNV - expected_BNV).abs().amax({1, 2}) < 1e-4;
}

}  // namespace

TEST_CASE("gpt: each kind of dropout acts in training alone", "[gpt]") {
  gpt::GptConfig config = test::golden_config("gpt_c2i");
  SECTION("none") {}
  SECTION("token dropout") { config.token_dropout_p = 0.5; }
  SECTION("residual dropout") { config.resid_dropout_p = 0.5; }
  SECTION("FFN dropout") { config.ffn_dropout_p = 0.5; }
  SECTION("drop path") { config.drop_path_rate = 0.5; }
  const bool is_random = config.token_dropout_p + config.resid_dropout_p + config.ffn_dropout_p +
                             config.drop_path_rate >
                         0;
  torch::manual_seed(3);
  auto model = random_gpt(config);
  const gpt::GptBatch batch = random_batch(config, 8);
  const auto first = model(batch), second = model(batch);
  CHECK(torch::equal(first, second) != is_random);
  model->eval();
  CHECK(torch::equal(model(batch), model(batch)));
  CHECK(torch::equal(model(batch), first) != is_random);
}

TEST_CASE("gpt: a layer whose drop path rate is 1 is the identity", "[gpt]") {
  gpt::GptConfig config = test::golden_config("gpt_c2i");
  config.drop_path_rate = 1;  // of the second layer; the first has 0
  torch::manual_seed(4);
  auto model = random_gpt(config);
  const gpt::GptBatch batch = random_batch(config, 4);
  const auto dropped = model(batch);
  CHECK_FALSE(torch::allclose(dropped, (model->eval(), model(batch))));
  scale_branches(model, /*layer=*/1, 0, 0);
  CHECK_THAT(model(batch), test::AllClose(dropped, test::kFloat32));
}

TEST_CASE("gpt: drop path is drawn per sample and branch, what stays is scaled", "[gpt]") {
  gpt::GptConfig config = test::golden_config("gpt_c2i");
  config.drop_path_rate = 0.75;
  config.block_size = 4;
  const auto same_model = [&] {
    torch::manual_seed(5);
    return random_gpt(config);
  };
  auto model = same_model();
  const gpt::GptBatch batch = random_batch(config, 100);
  const auto logits = model(batch);
  auto is_explained = torch::zeros({100}, torch::kBool);
  for (const bool has_attention : {false, true}) {
    for (const bool has_ffn : {false, true}) {
      INFO("attention " << has_attention << ", FFN " << has_ffn);
      auto expected = same_model();
      expected->eval();
      // A quarter stays, so it counts four times.
      scale_branches(expected, /*layer=*/1, has_attention ? 4 : 0, has_ffn ? 4 : 0);
      const auto is_this = is_like(logits, expected(batch));
      const double p = (has_attention ? 0.25 : 0.75) * (has_ffn ? 0.25 : 0.75);
      CHECK(is_this.sum().item<double>() ==
            Approx(100 * p).margin(5 * std::sqrt(100 * p * (1 - p))));
      CHECK(is_this.sum().item<int64_t>() > 0);
      is_explained.logical_or_(is_this);
    }
  }
  CHECK(is_explained.all().item<bool>());
}

TEST_CASE("gpt: the drop path rate rises linearly with depth", "[gpt]") {
  gpt::GptConfig config = test::golden_config("gpt_c2i");
  config.n_layer = 3;
  config.drop_path_rate = 0.8;
  config.block_size = 4;
  torch::manual_seed(6);
  constexpr int64_t kSamples = 400;
  const gpt::GptBatch batch = random_batch(config, kSamples);
  for (int64_t layer = 0; layer < 3; ++layer) {
    INFO("layer " << layer);
    // Only the FFN of this layer adds anything.
    auto model = random_gpt(config);
    for (int64_t i = 0; i < 3; ++i) scale_branches(model, i, 0, i == layer ? 1 : 0);
    const auto logits = model(batch);
    model->eval();
    scale_branches(model, layer, 0, 0);
    const double share = is_like(logits, model(batch)).to(torch::kDouble).mean().item<double>();
    const double p = 0.4 * static_cast<double>(layer);
    CHECK(share == Approx(p).margin(5 * std::sqrt(p * (1 - p) / kSamples)));
  }
}

namespace {

// The operators that run, as a trace.
std::string trace(const std::function<void()>& body) {
  std::ostringstream events;
  {
    const torch::autograd::profiler::RecordProfile profile(events);
    body();
  }
  return events.str();
}

}  // namespace

TEST_CASE("gpt: class-conditional attention is the flash kernel, no S x S mask", "[gpt]") {
  const std::string name = GENERATE(as<std::string>(), "gpt_c2i", "gpt_gqa");
  const bool is_narrow = GENERATE(false, true);
  INFO(name << (is_narrow ? ", bf16" : ", fp32"));
  auto model = test::golden_gpt(name);
  model->train();
  const gpt::GptBatch batch = random_batch(model->config(), 2);
  const auto run = [&] {
    const Autocast autocast(torch::kCPU, is_narrow ? torch::kBFloat16 : torch::kFloat32);
    gpt::gpt_loss(model(batch), batch.code_BN).backward();
  };
  const std::string flash = "_scaled_dot_product_flash_attention_for_cpu";
  const std::string math = "_scaled_dot_product_attention_math";
  const std::string operators = trace(run);
  CHECK_THAT(operators, Contains(flash + "\"") && Contains(flash + "_backward"));
  CHECK_THAT(operators, !Contains(math) && !Contains("aten::softmax"));
  at::globalContext().setSDPUseFlash(false);
  const std::string without = trace(run);
  at::globalContext().setSDPUseFlash(true);
  CHECK_THAT(without, Contains(math) && !Contains(flash));  // the difference is seen
}

TEST_CASE("gpt: sizes that do not fit together are refused", "[gpt]") {
  const auto error_with = [](const std::function<void(gpt::GptConfig&)>& change) {
    gpt::GptConfig config = test::golden_config("gpt_c2i");
    change(config);
    return test::error_of([&] { gpt::Transformer model(config); });
  };
  CHECK(error_with([](auto& c) { c.block_size = 35; }) ==
        "model.block_size: 35 is not the square of a grid size, such as 256 = 16^2");
  CHECK(error_with([](auto& c) { c.n_head = 3; }) ==
        "model.dim: 64 over n_head 3 must be a whole multiple of 4");
  CHECK(error_with([](auto& c) { c.n_kv_head = 3; }) ==
        "model.n_kv_head: 3 does not divide n_head 2");
  CHECK(error_with([](auto& c) { c.cls_token_num = 2; }) ==
        "model.cls_token_num: a class-conditional model has 1 condition token, found 2");
  CHECK(test::error_of([] { gpt::gpt_size("M"); }) ==
        "GPT size 'M': expected one of B, L, XL, XXL, XXXL, 1B, 3B, 7B");
  auto model = test::golden_gpt("gpt_c2i");
  gpt::GptBatch batch;
  batch.code_BN = torch::zeros({1, 37}, torch::kLong);
  batch.condition = torch::tensor({0});
  CHECK(test::error_of([&] { model(batch); }) ==
        "gpt: 37 codes per sample, expected 1 to block_size 36");
}

}  // namespace vgen
