#include "vgen/var/transformer.h"

#include <catch2/catch.hpp>
#include <cmath>

#include "support/golden.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "var/golden_var.h"
#include "vgen/checkpoint/named_tensors.h"
#include "vgen/nn/cross_entropy.h"
#include "vgen/tensor/autocast.h"

namespace vgen {

using Catch::Contains;
using test::golden_tensor;

namespace {

// What the golden models are asked.
struct Input {
  explicit Input(const std::string& name)
      : label_B(golden_tensor(name + "/labels.npy")),
        teacher_BMZ(golden_tensor(name + "/var_input.npy")),
        code_BL(golden_tensor(name + "/gt_idx.npy")) {}
  torch::Tensor label_B, teacher_BMZ, code_BL;
};

// Within five standard errors of the standard deviation of that many normal numbers.
void check_std(const torch::Tensor& weight, double expected) {
  const double error = 5 / std::sqrt(2.0 * static_cast<double>(weight.numel()));
  CHECK(weight.std().item<double>() == Approx(expected).epsilon(error));
}

// A mean within five standard errors of zero.
void check_centred(const torch::Tensor& weight, double std) {
  const double error = std / std::sqrt(static_cast<double>(weight.numel()));
  CHECK(std::abs(weight.mean().item<double>()) < 5 * error);
}

}  // namespace

TEST_CASE("var: names, order, logits and losses of the official code", "[var][golden]") {
  const std::string name = GENERATE(as<std::string>(), "var", "var_saln", "var_from_2");
  INFO(name);
  auto model = test::golden_var(name);
  const auto state = checkpoint::named_state(*model);
  const io::StateDict official = io::load_state_dict(test::golden(name + "/var.pth"));
  REQUIRE(state.size() == official.tensors.size());
  for (size_t i = 0; i < state.size(); ++i) CHECK(state[i].name == official.tensors[i].name);

  const Input input(name);
  const torch::NoGradGuard no_grad;
  const auto logits_BLV = model(input.label_B, input.teacher_BMZ);
  CHECK(logits_BLV.scalar_type() == torch::kFloat32);
  CHECK_THAT(logits_BLV, test::AllClose(golden_tensor(name + "/logits.npy"), test::kParity));
  const auto expected_BL = golden_tensor(name + "/loss_tokens.npy");
  const auto loss_BL = nn::cross_entropy(logits_BLV, input.code_BL);
  CHECK_THAT(loss_BL, test::AllClose(expected_BL, test::kParity));
  const int64_t tokens = model->config().num_tokens();
  const auto weight_L = torch::full({tokens}, 1.0 / static_cast<double>(tokens));
  CHECK(var::var_loss(loss_BL, weight_L).item<double>() ==
        Approx(expected_BL.mean().item<double>()).epsilon(1e-5));
}

// The buffers of a new model are those that checkpoints hold.
TEST_CASE("var: the buffers say which scale sees which", "[var][golden]") {
  const std::string name = GENERATE(as<std::string>(), "var", "var_from_2");
  var::VarTransformer model(test::golden_var_config(name));
  const io::StateDict official = io::load_state_dict(test::golden(name + "/var.pth"));
  for (const std::string key : {"lvl_1L", "attn_bias_for_masking", "blocks.1.attn.zero_k_bias"}) {
    INFO(name << " " << key);
    CHECK(torch::equal(model->named_buffers()[key], checkpoint::as_tensor(*official.find(key))));
  }
}

TEST_CASE("var: attention is the same however its queries are grouped", "[var]") {
  torch::manual_seed(2);
  var::VarConfig config = test::golden_var_config("var");
  var::Attention attention(config, torch::kCPU);
  for (const auto& weight : attention->parameters()) weight.detach().normal_(0, 0.1);
  const auto x_BLC = torch::randn({2, 30, 48});
  const auto groups_of = [&](int64_t max_masked_tokens) {
    return var::query_groups(config, 3, x_BLC.options(), max_masked_tokens);
  };
  const auto each = groups_of(1), all = groups_of(30), mixed = groups_of(20);
  CHECK(each.size() == 4);
  REQUIRE(all.size() == 1);
  REQUIRE(mixed.size() == 2);  // 1 + 4 + 9 tokens, then 16
  CHECK(mixed[0].end == 14);
  CHECK_FALSE(mixed[1].mask_11QM.defined());
  CHECK(torch::equal(all[0].mask_11QM,
                     test::golden_var("var")->named_buffers()["attn_bias_for_masking"]));
  const auto expected = attention(x_BLC, each);
  CHECK_THAT(attention(x_BLC, all), test::AllClose(expected, test::kFloat32));
  CHECK_THAT(attention(x_BLC, mixed), test::AllClose(expected, test::kFloat32));
}

TEST_CASE("var: a later scale never changes an earlier scale's logits", "[var]") {
  const std::string name = GENERATE(as<std::string>(), "var", "var_saln", "var_from_2");
  auto model = test::golden_var(name);
  const Input input(name);
  for (int64_t k = 0; k + 1 < model->config().num_scales(); ++k) {
    INFO(name << " scale " << k);
    // Row j is what position j + P reads, P tokens of the first scale.
    const int64_t end = model->config().scale_end(k), rows = end - model->config().scale_end(0);
    auto teacher = input.teacher_BMZ.clone().requires_grad_();
    const auto before = model(input.label_B, teacher);
    before.slice(1, 0, end).pow(2).sum().backward();
    CHECK(teacher.grad().slice(1, rows).abs().max().item<double>() == 0);
    auto changed = input.teacher_BMZ.clone();
    changed.slice(1, rows).add_(1);
    const auto after = model(input.label_B, changed);
    CHECK_THAT(after.slice(1, 0, end), test::AllClose(before.slice(1, 0, end), test::kFloat32));
    CHECK_FALSE(torch::allclose(after.slice(1, end), before.slice(1, end)));  // it was seen
  }
}

TEST_CASE("var: tokens of a scale see one another, and the scales before", "[var]") {
  auto model = test::golden_var("var");
  const Input input("var");
  auto teacher = input.teacher_BMZ.clone().requires_grad_();
  // The first token of the last scale reads all rows, the last one too.
  model(input.label_B, teacher).select(1, 14).pow(2).sum().backward();
  CHECK(teacher.grad().abs().sum(-1).min().item<double>() > 0);
}

TEST_CASE("var: the first scales alone have the logits that they have among all", "[var]") {
  const std::string name = GENERATE(as<std::string>(), "var", "var_from_2");
  auto model = test::golden_var(name);
  const Input input(name);
  const torch::NoGradGuard no_grad;
  const auto all = model(input.label_B, input.teacher_BMZ);
  for (int64_t k = 0; k < model->config().num_scales(); ++k) {
    INFO(name << " scale " << k);
    const int64_t end = model->config().scale_end(k), rows = end - model->config().scale_end(0);
    const auto first = model(input.label_B, input.teacher_BMZ.slice(1, 0, rows), k);
    CHECK_THAT(first, test::AllClose(all.slice(1, 0, end), test::kFloat32));
    CHECK_THAT(model(input.label_B, input.teacher_BMZ, k), test::AllClose(first, test::kFloat32));
  }
}

TEST_CASE("var: every parameter gets a gradient", "[var]") {
  const std::string name = GENERATE(as<std::string>(), "var", "var_saln", "var_from_2");
  auto model = test::golden_var(name);
  model->train();
  const Input input(name);
  nn::cross_entropy(model(input.label_B, input.teacher_BMZ), input.code_BL).mean().backward();
  for (const auto& item : model->named_parameters()) {
    INFO(item.key());
    REQUIRE(item.value().grad().defined());
    CHECK(item.value().grad().isfinite().all().item<bool>());
    CHECK(item.value().grad().abs().max().item<double>() > 0);
  }
}

TEST_CASE("var: narrow computation is near, its logits float32", "[var]") {
  const std::string name = GENERATE(as<std::string>(), "var", "var_saln");
  auto model = test::golden_var(name);
  const Input input(name);
  const torch::NoGradGuard no_grad;
  const auto expected = model(input.label_B, input.teacher_BMZ);
  const Autocast autocast(torch::kCPU, torch::kBFloat16);
  const auto logits = model(input.label_B, input.teacher_BMZ);
  CHECK(logits.scalar_type() == torch::kFloat32);
  CHECK_FALSE(torch::allclose(logits, expected, 1e-5, 1e-5));
  const auto error = (logits - expected).norm() / expected.norm();
  CHECK(error.item<double>() < 0.05);
}

TEST_CASE("var: drop path and dropout act in training alone", "[var]") {
  var::VarConfig config = test::golden_var_config("var");
  SECTION("drop path") { config.drop_path_rate = 0.5; }
  SECTION("dropout") { config.dropout_p = 0.5; }
  SECTION("attention dropout") { config.attn_dropout_p = 0.5; }
  config.init_adaln_gamma = config.init_head = 1;  // so that the branches matter
  torch::manual_seed(3);
  var::VarTransformer model(config);
  const Input input("var");
  CHECK_FALSE(torch::equal(model(input.label_B, input.teacher_BMZ),
                           model(input.label_B, input.teacher_BMZ)));
  model->eval();
  CHECK(torch::equal(model(input.label_B, input.teacher_BMZ),
                     model(input.label_B, input.teacher_BMZ)));
}

TEST_CASE("var: parameter counts of the published sizes", "[var]") {
  struct Size {
    const char* name;
    int64_t parameters;
    size_t entries;
    int64_t tokens;
  };
  for (const Size& size :
       {Size{"d12", 133186960, 168, 680}, Size{"d16", 310283520, 220, 680},
        Size{"d20", 600917136, 272, 680}, Size{"d24", 1033399360, 324, 680},
        Size{"d30", 2010020356, 402, 680}, Size{"d36-s", 2353893904, 446, 2240}}) {
    INFO(size.name);
    const var::VarConfig config = var::var_size(size.name);
    const var::VarTransformer model(config, torch::kMeta);
    int64_t parameters = 0;
    for (const auto& item : checkpoint::named_parameters(*model)) parameters += item.tensor.numel();
    CHECK(parameters == size.parameters);
    CHECK(checkpoint::named_state(*model).size() == size.entries);
    CHECK(config.num_tokens() == size.tokens);
    CHECK(config.head_dim() == 64);
    CHECK(static_cast<int64_t>(model->blocks().size()) == config.depth);
  }
}

TEST_CASE("var: width, heads and drop path follow from the depth", "[var]") {
  struct Rule {
    const char* name;
    int64_t depth, width;
    double max_drop_path;
  };
  for (const Rule& rule : {Rule{"d12", 12, 768, 0.05}, Rule{"d16", 16, 1024, 0.1 * 2 / 3},
                           Rule{"d20", 20, 1280, 0.1 * 5 / 6}, Rule{"d24", 24, 1536, 0.1},
                           Rule{"d30", 30, 1920, 0.125}, Rule{"d36-s", 36, 2304, 0.15}}) {
    INFO(rule.name);
    const var::VarConfig config = var::var_size(rule.name);
    CHECK(config.depth == rule.depth);
    CHECK(config.width() == rule.width);
    CHECK(config.heads() == rule.depth);
    CHECK(config.ffn_dim() == 4 * rule.width);
    CHECK(config.max_drop_path() == Approx(rule.max_drop_path));
    CHECK(config.attn_l2_norm);
    CHECK(config.shared_adaln == (rule.depth == 36));
  }
  var::VarConfig config = var::var_size("d24");
  config.drop_path_rate = 0.3;
  CHECK(config.max_drop_path() == 0.3);
}

TEST_CASE("var: the first block is never dropped, the last one most often", "[var]") {
  var::VarConfig config = test::golden_var_config("var");  // two blocks
  config.drop_path_rate = 1;
  config.init_adaln_gamma = config.init_head = 1;  // so that the branches matter
  torch::manual_seed(6);
  var::VarTransformer model(config);
  const Input input("var");
  const torch::NoGradGuard no_grad;
  const auto change_by = [&](const std::string& block) {
    const auto before = model(input.label_B, input.teacher_BMZ);
    model->named_parameters()["blocks." + block + ".ffn.fc2.bias"].add_(1);
    return (model(input.label_B, input.teacher_BMZ) - before).abs().max().item<double>();
  };
  model->train();
  CHECK(change_by("1") == 0);
  CHECK(change_by("0") > 0);
  model->eval();
  CHECK(change_by("1") > 0);
}

TEST_CASE("var: initial weights", "[var]") {
  torch::manual_seed(4);
  var::VarConfig config = test::golden_var_config("var");
  config.depth = 4;
  config.dim = 128;
  config.n_head = 4;
  config.init_adaln_gamma = 1e-3;
  const bool is_shared = GENERATE(false, true);
  config.shared_adaln = is_shared;
  config.init_std = GENERATE(-1.0, 0.01);
  INFO("shared " << is_shared << ", init_std " << config.init_std);
  var::VarTransformer model(config);
  const auto weights = model->named_parameters();
  const double base = std::sqrt(1.0 / (3 * 128));
  const double std = config.init_std < 0 ? base : 0.01;
  const auto check_named = [&](const std::string& name, double expected) {
    INFO(name);
    check_std(weights[name], expected);
    check_centred(weights[name], expected);
  };
  check_named("pos_start", base);
  check_named("pos_1LC", base);
  for (const char* name : {"word_embed.weight", "class_emb.weight", "lvl_embed.weight",
                           "blocks.2.attn.mat_qkv.weight", "blocks.2.ffn.fc1.weight"}) {
    check_named(name, std);
  }
  check_named("head.weight", 0.02 * std);
  check_named("head_nm.ada_lin.1.weight", 0.5 * std);
  check_named("blocks.3.attn.proj.weight", std / std::sqrt(8));
  check_named("blocks.3.ffn.fc2.weight", std / std::sqrt(8));
  CHECK(weights["blocks.1.attn.scale_mul_1H11"].eq(std::log(4.0f)).all().item<bool>());
  if (is_shared) {
    check_named("shared_ada_lin.1.weight", std);
    const auto gss = weights["blocks.0.ada_gss"];
    check_centred(gss.slice(2, 2), 0.5 / std::sqrt(128));
    check_std(gss.slice(2, 0, 2), 1e-3 / std::sqrt(128));
    check_std(gss.slice(2, 2), 0.5 / std::sqrt(128));
  } else {
    const auto ada = weights["blocks.0.ada_lin.1.weight"];
    check_std(ada.slice(0, 0, 256), 1e-3 * std);
    check_std(ada.slice(0, 256), 0.5 * std);
  }
  for (const auto& item : weights) {
    INFO(item.key());
    if (item.key().ends_with("bias")) CHECK(item.value().abs().max().item<double>() == 0);
  }
}

TEST_CASE("var: an untrained model is unsure", "[var]") {
  torch::manual_seed(5);
  var::VarTransformer model(test::golden_var_config("var"));
  const Input input("var");
  const auto loss = nn::cross_entropy(model(input.label_B, input.teacher_BMZ), input.code_BL);
  CHECK(loss.mean().item<double>() == Approx(std::log(64.0)).epsilon(0.01));
}

TEST_CASE("var: sizes that do not fit together are refused", "[var]") {
  const auto error_with = [](const std::function<void(var::VarConfig&)>& change) {
    var::VarConfig config = test::golden_var_config("var");
    change(config);
    return test::error_of([&] { var::VarTransformer model(config, torch::kMeta); });
  };
  CHECK(error_with([](auto& c) { c.patch_nums = {}; }) ==
        "model.patch_nums is empty, expected the side of each scale");
  CHECK(error_with([](auto& c) {
          c.patch_nums = {0, 2};
        }) == "model.patch_nums is [0, 2], expected sides that grow from at least 1");
  CHECK(error_with([](auto& c) {
          c.patch_nums = {2, 3, 3};
        }) == "model.patch_nums is [2, 3, 3], expected sides that grow from at least 1");
  CHECK(error_with([](auto& c) { c.n_head = 5; }) ==
        "model.dim: 48 must be a whole multiple of n_head 5");
  CHECK(error_with([](auto& c) { c.drop_path_rate = -0.5; }) ==
        "model.drop_path_rate: -0.5 must be -1 or from 0 to 1");
  CHECK(error_with([](auto& c) { c.init_std = -0.5; }) ==
        "model.init_std: -0.5 must be -1 or at least 0");
  CHECK(test::error_of([] { var::var_size("d17"); }) ==
        "VAR size 'd17': expected one of d12, d16, d20, d24, d30, d36-s");
}

TEST_CASE("var: inputs of another shape are refused", "[var]") {
  auto model = test::golden_var("var");
  const Input input("var");
  const std::string expected =
      "var: labels [2] with a teacher input [2, 20, 16], expected [B] and "
      "[B, 29, 16]";
  CHECK(test::error_of([&] { model(input.label_B, input.teacher_BMZ.slice(1, 0, 20)); }) ==
        expected);
  CHECK_THAT(test::error_of([&] { model(input.label_B.slice(0, 0, 1), input.teacher_BMZ); }),
             Contains("labels [1]"));
  CHECK(test::error_of([&] { model(input.label_B, input.teacher_BMZ, 4); }) ==
        "var: last_scale 4, expected -1 to 3");

  // The first four tokens have no row.
  auto from_2 = test::golden_var("var_from_2");
  CHECK(test::error_of([&] { from_2(input.label_B, input.teacher_BMZ.slice(1, 0, 24)); }) ==
        "var: labels [2] with a teacher input [2, 24, 16], expected [B] and [B, 25, 16]");
}

TEST_CASE("var: each cell of the first scale has a start of its own", "[var]") {
  auto model = test::golden_var("var_from_2");
  const Input input("var_from_2");
  auto start = model->named_parameters()["pos_start"];
  REQUIRE(start.size(1) == 4);
  const torch::NoGradGuard no_grad;
  const auto before = model(input.label_B, input.teacher_BMZ, 0);
  for (int64_t i = 0; i < 4; ++i) {
    INFO("cell " << i);
    const auto kept = start.clone();
    start.select(1, i).neg_();
    const auto moved_P = (model(input.label_B, input.teacher_BMZ, 0) - before).abs().amax({0, 2});
    CHECK(moved_P.argmax().item<int64_t>() == i);
    start.copy_(kept);
  }
}

}  // namespace vgen
