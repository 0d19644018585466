#include "vgen/infer/var_engine.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <limits>

#include "support/golden.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/checkpoint/store.h"
#include "vgen/infer/load_var.h"
#include "vgen/infer/var_generate.h"
#include "vgen/io/safetensors.h"
#include "vgen/var/transformer.h"

namespace vgen {

using Catch::Matchers::Contains;
using infer::LoadedVar;
using infer::MultiScaleTokenizer;
using infer::VarEngine;
using infer::VarEngineOptions;
using infer::VarRequest;
using infer::VarSettings;
using test::AllClose;
using test::golden_tensor;

namespace {

constexpr int64_t kNoClass = 10;

std::unique_ptr<VarEngine> golden_engine(const std::string& name, VarEngineOptions options = {}) {
  return make_var_engine(infer::load_var(test::golden(name + "/var.pth")).weights, options);
}

// With the scales of a golden model.
infer::LoadedTokenizer load_golden_tokenizer(const std::string& name = "var") {
  const auto scales = infer::load_var(test::golden(name + "/var.pth")).weights.config.patch_nums;
  return infer::load_tokenizer(test::golden("var_vae/vae.pth"),
                               {.patch_nums = scales, .device = "cpu"});
}

const MultiScaleTokenizer& as_scales(const infer::LoadedTokenizer& loaded) {
  return dynamic_cast<const MultiScaleTokenizer&>(*loaded.model);
}

std::vector<VarRequest> requests_of(const torch::Tensor& label_B) {
  std::vector<VarRequest> requests;
  for (int64_t b = 0; b < label_B.size(0); ++b) {
    requests.push_back({.image = static_cast<uint64_t>(b), .label = label_B[b].item<int64_t>()});
  }
  return requests;
}

// Logits of every scale, the engine fed with the inputs of given codes: (S, L, V).
torch::Tensor teacher_forced(VarEngine& engine, const torch::Tensor& label_S,
                             const torch::Tensor& input_BMZ) {
  engine.start(label_S);
  std::vector<torch::Tensor> logits{engine.run_scale({})};
  const auto& config = engine.config();
  const int64_t first = config.scale_end(0);  // tokens without a row
  for (int64_t k = 1; k < config.num_scales(); ++k) {
    logits.push_back(engine.run_scale(
        input_BMZ.slice(1, config.scale_begin(k) - first, config.scale_end(k) - first)));
  }
  return torch::cat(logits, 1);
}

VarSettings greedy(double cfg_scale) { return {.cfg_scale = cfg_scale, .filter = {.top_k = 1}}; }

// The decoder's image as the official code returns it, in [0, 1].
torch::Tensor unit_image(const MultiScaleTokenizer& tokenizer, const infer::VarImages& images) {
  return (tokenizer.decode_latent(images.latent_BZhh) + 1) / 2;
}

}  // namespace

TEST_CASE("var config: read off the weights", "[infer][golden]") {
  const bool is_shared = GENERATE(false, true);
  const std::string name = is_shared ? "var_saln" : "var";
  const auto config = infer::load_var(test::golden(name + "/var.pth")).weights.config;
  CHECK(config.depth == 2);
  CHECK(config.width() == 48);
  CHECK(config.heads() == (is_shared ? 2 : 3));
  CHECK(config.patch_nums == std::vector<int64_t>{1, 2, 3, 4});
  CHECK(config.num_classes == 10);
  CHECK(config.codebook_size == 64);
  CHECK(config.z_channels == 16);
  CHECK(config.shared_adaln == is_shared);
  CHECK(infer::load_var(test::golden("var_from_2/var.pth")).weights.config.patch_nums ==
        std::vector<int64_t>{2, 3, 4});
}

TEST_CASE("var config: other scales than those of the weights are refused", "[infer]") {
  const auto error = [](const std::string& path, const std::string& config) {
    return test::error_of([&] { infer::load_var(path, {.config = config}); });
  };
  CHECK_THAT(error(test::golden("var/var.pth"), "d16"),
             Contains("var.pth: was trained with the scales [1, 2, 3, 4], but model.patch_nums of "
                      "d16 is [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]; give a config with the scales"));

  // As many scales and tokens: no shape tells these apart.
  auto config = infer::load_var(test::golden("var/var.pth")).weights.config;
  config.patch_nums = {1, 2, 9, 10};
  const std::string own = dump_config(config);
  torch::manual_seed(0);
  const var::VarTransformer model(config);
  config.patch_nums = {1, 6, 7, 10};
  const test::TempDir dir;
  test::write_file(dir / "own.yaml", own);
  test::write_file(dir / "other.yaml", dump_config(config));
  checkpoint::Snapshot snapshot;
  snapshot.state = io::Json::object();
  snapshot.files.push_back({"model.safetensors", checkpoint::named_state(*model)});
  checkpoint::CheckpointStore(dir / "run/checkpoints", {}).save(snapshot);
  const std::string weights = dir / "run/checkpoints/step_0000000/model.safetensors";
  CHECK(infer::load_var(weights, {.config = dir / "own.yaml"}).weights.config.patch_nums ==
        std::vector<int64_t>{1, 2, 9, 10});
  const std::string trained =
      "model.safetensors: was trained with the scales [1, 2, 9, 10], but model.patch_nums of ";
  CHECK_THAT(error(weights, dir / "other.yaml"),
             Contains(trained + dir.path() + "/other.yaml is [1, 6, 7, 10]; give a config with"));

  // A run whose config is no longer its own.
  std::string yaml = "task: var\nmodel:\n";
  for (const std::string& line : split(dump_config(config), '\n')) yaml += "  " + line + "\n";
  test::write_file(dir / "run/config.yaml", yaml);
  CHECK_THAT(error(dir / "run", ""),
             Contains(trained) && Contains("/run/config.yaml is [1, 6, 7, 10]; give a config"));

  // Weights without the buffer tell nothing.
  auto state = checkpoint::named_state(*model);
  std::erase_if(state, [](const auto& item) { return item.name == "lvl_1L"; });
  io::write_safetensors(dir / "bare.safetensors", checkpoint::as_arrays(state));
  CHECK(infer::load_var(dir / "bare.safetensors", {.config = dir / "other.yaml"})
            .weights.config.patch_nums == config.patch_nums);
}

TEST_CASE("var engine: logits, codes and images of the official code", "[infer][golden]") {
  const std::string name = GENERATE("var", "var_saln", "var_from_2");
  const std::string cfg = GENERATE("1.5", "4");
  const bool use_own_kernels = GENERATE(true, false);
  CAPTURE(name, cfg, use_own_kernels);
  const auto engine = golden_engine(name, {.use_own_kernels = use_own_kernels});
  const auto loaded = load_golden_tokenizer(name);
  const auto& tokenizer = as_scales(loaded);
  const auto requests = requests_of(golden_tensor(name + "/gen_labels.npy"));
  const std::string prefix = name + "/infer_cfg" + cfg;

  const auto images = generate_var(*engine, tokenizer, requests, greedy(std::stod(cfg)));
  CHECK(images.code_BL.equal(golden_tensor(prefix + "_idx.npy")));
  CHECK_THAT(unit_image(tokenizer, images),
             AllClose(golden_tensor(prefix + "_image.npy"), {1e-3, 0}));
}

TEST_CASE("var engine: teacher-forced logits of every scale", "[infer][golden]") {
  const std::string name = GENERATE("var", "var_saln", "var_from_2");
  CAPTURE(name);
  const auto engine = golden_engine(name);
  const auto input_BMZ = golden_tensor(name + "/var_input.npy");
  CHECK_THAT(teacher_forced(*engine, golden_tensor(name + "/labels.npy"), input_BMZ),
             AllClose(golden_tensor(name + "/logits.npy"), test::kParity));
  CHECK_THAT(test::error_of([&] { engine->run_scale(input_BMZ); }),
             Contains(name == "var_from_2" ? "scale 3 of 3" : "scale 4 of 4"));
}

TEST_CASE("var engine: guided logits of every scale, those that codes are chosen from",
          "[infer][golden]") {
  const std::string name = GENERATE("var", "var_saln", "var_from_2");
  const std::string cfg = GENERATE("1.5", "4");
  const bool use_own_kernels = GENERATE(true, false);
  CAPTURE(name, cfg, use_own_kernels);
  const auto engine = golden_engine(name, {.use_own_kernels = use_own_kernels});
  const auto loaded = load_golden_tokenizer(name);
  const std::string prefix = name + "/infer_cfg" + cfg;
  const auto input_BMZ =
      as_scales(loaded).quantizer().teacher_input(golden_tensor(prefix + "_idx.npy"));
  const auto label_B = golden_tensor(name + "/gen_labels.npy");
  const auto label_S = torch::cat({label_B, torch::full_like(label_B, kNoClass)});
  const auto parts = teacher_forced(*engine, label_S, input_BMZ).chunk(2);

  // Guidance grows from 0 to cfg.
  std::vector<double> strength;
  const std::vector<int64_t>& sides = engine->config().patch_nums;
  for (size_t k = 0; k < sides.size(); ++k) {
    strength.insert(
        strength.end(), static_cast<size_t>(sides[k] * sides[k]),
        std::stod(cfg) * static_cast<double>(k) / static_cast<double>(sides.size() - 1));
  }
  const auto t_L1 = torch::tensor(strength, torch::kFloat32).unsqueeze(1);
  const auto guided_BLV = (1 + t_L1) * parts[0] - t_L1 * parts[1];
  CHECK_THAT(guided_BLV, AllClose(golden_tensor(prefix + "_logits.npy"), test::kParity));
}

TEST_CASE("var edit: given codes stay, the official notebook's results", "[infer][golden]") {
  const auto [name, prefix] =
      GENERATE(table<std::string, std::string>({{"var", "var_edit/inpaint"},
                                                {"var", "var_edit/outpaint"},
                                                {"var", "var_edit/class"},
                                                {"var_from_2", "var_from_2/edit"}}));
  CAPTURE(prefix);
  const auto engine = golden_engine(name);
  const auto loaded = load_golden_tokenizer(name);
  const auto& tokenizer = as_scales(loaded);
  const auto mask_hh = golden_tensor(prefix + "_mask.npy");
  const auto is_kept_L = infer::kept_codes(mask_hh, engine->config().patch_nums);
  CHECK(is_kept_L.to(torch::kLong).equal(golden_tensor(prefix + "_force.npy")));

  const auto given_BL = tokenizer.encode(golden_tensor("var_vae/images.npy"));
  auto requests = requests_of(golden_tensor(prefix + "_labels.npy"));
  for (size_t b = 0; b < requests.size(); ++b) {
    requests[b].given_L = given_BL[static_cast<int64_t>(b)];
    requests[b].is_kept_L = is_kept_L;
  }
  const auto images = generate_var(*engine, tokenizer, requests, greedy(3));
  const auto chosen_BL = golden_tensor(prefix + "_idx.npy");
  CHECK(images.code_BL.equal(torch::where(is_kept_L, given_BL, chosen_BL)));
  CHECK_THAT(unit_image(tokenizer, images),
             AllClose(golden_tensor(prefix + "_image.npy"), {1e-3, 0}));
}

TEST_CASE("var edit: a first scale of one token stays, larger ones follow the mask", "[infer]") {
  auto mask_hh = torch::zeros({4, 4});
  mask_hh.slice(0, 0, 2).slice(1, 0, 2).fill_(1);  // the upper left quarter stays
  const auto kept_of = [&](const std::vector<int64_t>& scales) {
    const auto kept_L = infer::kept_codes(mask_hh, scales).to(torch::kLong);
    return std::vector<int64_t>(kept_L.data_ptr<int64_t>(),
                                kept_L.data_ptr<int64_t>() + scales[0] * scales[0]);
  };
  CHECK(kept_of({1, 4}) == std::vector<int64_t>{1});
  CHECK(kept_of({2, 4}) == std::vector<int64_t>{1, 0, 0, 0});
  mask_hh = 1 - mask_hh;
  CHECK(kept_of({1, 4}) == std::vector<int64_t>{1});
  CHECK(kept_of({2, 4}) == std::vector<int64_t>{0, 1, 1, 1});
}

TEST_CASE("var edit: given codes stay among mixtures", "[infer]") {
  const auto engine = golden_engine("var");
  const auto loaded = load_golden_tokenizer();
  const auto& tokenizer = as_scales(loaded);
  const VarSettings settings{.cfg_scale = 2, .filter = {.top_k = 30}, .more_smooth = true};
  const auto given_BL = tokenizer.encode(golden_tensor("var_vae/images.npy"));
  auto requests = requests_of(torch::zeros({given_BL.size(0)}, torch::kLong));
  const auto draw = [&](const torch::Tensor& is_kept_L) {
    for (size_t b = 0; b < requests.size(); ++b) {
      requests[b].given_L = given_BL[static_cast<int64_t>(b)];
      requests[b].is_kept_L = is_kept_L;
    }
    return generate_var(*engine, tokenizer, requests, settings);
  };
  // Nothing of a mixture is where all codes are given.
  const auto kept = draw(torch::ones({30}, torch::kBool));
  CHECK(kept.code_BL.equal(given_BL));
  CHECK_THAT(kept.latent_BZhh, AllClose(tokenizer.quantizer().latent(given_BL), test::kFloat32));

  const auto is_kept_L =
      infer::kept_codes(golden_tensor("var_edit/inpaint_mask.npy"), {1, 2, 3, 4});
  const auto part = draw(is_kept_L);
  CHECK(part.code_BL.masked_select(is_kept_L).equal(given_BL.masked_select(is_kept_L)));
  CHECK_FALSE(part.code_BL.equal(given_BL));
  CHECK_FALSE(
      torch::allclose(part.latent_BZhh, tokenizer.quantizer().latent(part.code_BL), 1e-3, 1e-3));
}

TEST_CASE("var engine: an image depends on its number, not on the batch", "[infer]") {
  const auto engine = golden_engine("var");
  const auto loaded = load_golden_tokenizer();
  const auto& tokenizer = as_scales(loaded);
  const bool more_smooth = GENERATE(false, true);
  const VarSettings settings{
      .cfg_scale = 2, .filter = {.top_k = 20, .top_p = 0.9}, .more_smooth = more_smooth, .seed = 5};
  const auto all = requests_of(torch::tensor({3, 1, 4}, torch::kLong));
  const auto together = generate_var(*engine, tokenizer, all, settings);
  for (int64_t b = 0; b < 3; ++b) {
    const std::vector<VarRequest> one{all[static_cast<size_t>(b)]};
    const auto alone = generate_var(*engine, tokenizer, one, settings);
    CHECK(alone.code_BL[0].equal(together.code_BL[b]));
    CHECK_THAT(alone.latent_BZhh[0], AllClose(together.latent_BZhh[b], test::kParity));
  }
  auto other = settings;
  other.seed = 6;
  CHECK_FALSE(generate_var(*engine, tokenizer, all, other).code_BL.equal(together.code_BL));
}

TEST_CASE("var engine: mixtures of codes follow the drawn ones where the filter leaves one",
          "[infer]") {
  const auto engine = golden_engine("var");
  const auto loaded = load_golden_tokenizer();
  const auto& tokenizer = as_scales(loaded);
  const auto requests = requests_of(torch::tensor({3, 1}, torch::kLong));
  VarSettings settings = greedy(2);
  const auto plain = generate_var(*engine, tokenizer, requests, settings);
  settings.more_smooth = true;
  const auto mixed = generate_var(*engine, tokenizer, requests, settings);
  CHECK(mixed.code_BL.equal(plain.code_BL));
  CHECK_THAT(mixed.latent_BZhh, AllClose(plain.latent_BZhh, test::kFloat32));
  settings.filter.top_k = 30;
  const auto soft = generate_var(*engine, tokenizer, requests, settings);
  CHECK_FALSE(torch::allclose(soft.latent_BZhh, plain.latent_BZhh, 1e-3, 1e-3));
}

TEST_CASE("var engine: the parts of a mixture of codes", "[infer]") {
  torch::manual_seed(0);
  auto logits_V = 3 * torch::randn({40});
  logits_V.index_fill_(0, torch::tensor({0, 7, 39}), -std::numeric_limits<float>::infinity());
  const auto noise_V = -torch::empty({40}, torch::kDouble).exponential_().log();
  const std::span logits(logits_V.const_data_ptr<float>(), 40);
  const std::span noise(noise_V.const_data_ptr<double>(), 40);
  for (const auto& [ratio, tau] : {std::pair{0.0, 0.27}, {1.0 / 3, 0.1845}, {1.0, 0.0135}}) {
    CAPTURE(ratio);
    auto part_V = torch::full({40}, -1.0f);
    infer::mixture_parts(logits, noise, ratio, {part_V.mutable_data_ptr<float>(), 40});
    const auto expected_V =
        torch::softmax((logits_V.to(torch::kDouble) * (1 + ratio) + noise_V) / tau, 0);
    CHECK_THAT(part_V, AllClose(expected_V.to(torch::kFloat), {1e-6, 0}));
    for (const int64_t removed : {0, 7, 39}) CHECK(part_V[removed].item<float>() == 0);
    CHECK(part_V.sum().item<float>() == Approx(1));
  }
  // A code that is left alone is all of it, however small its logit.
  auto one_V = torch::full({40}, -std::numeric_limits<float>::infinity());
  one_V[5] = -2;
  auto part_V = torch::empty({40});
  infer::mixture_parts({one_V.const_data_ptr<float>(), 40}, noise, 0.5,
                       {part_V.mutable_data_ptr<float>(), 40});
  CHECK(part_V[5].item<float>() == 1);
}

TEST_CASE("var engine: narrow weights stay near", "[infer]") {
  // The relative error of the logits of a scale, and the share of likeliest codes that stay so.
  const auto [precision, tolerance, least_same] =
      GENERATE(table<std::string, double, double>({{"bf16", 0.1, 0.8}, {"int8", 0.1, 0.8}}));
  CAPTURE(precision);
  const auto exact = golden_engine("var"), narrow = golden_engine("var", {.precision = precision});
  const auto label_B = golden_tensor("var/labels.npy");
  const auto input_BMZ = golden_tensor("var/var_input.npy");
  const auto a_BLV = teacher_forced(*exact, label_B, input_BMZ);
  const auto b_BLV = teacher_forced(*narrow, label_B, input_BMZ);
  for (int64_t k = 0; k < 4; ++k) {
    const int64_t begin = exact->config().scale_begin(k), end = exact->config().scale_end(k);
    const auto a = a_BLV.slice(1, begin, end), b = b_BLV.slice(1, begin, end);
    const double error = (a - b).norm().item<double>() / a.norm().item<double>();
    CAPTURE(k, error);
    CHECK(error < tolerance);
    CHECK(error > 0);
  }
  const double same =
      a_BLV.argmax(-1).eq(b_BLV.argmax(-1)).to(torch::kDouble).mean().item<double>();
  CAPTURE(same);
  CHECK(same >= least_same);
  CHECK(narrow->weight_bytes() < exact->weight_bytes());
}

TEST_CASE("var: what does not fit is named", "[infer]") {
  const auto loaded = load_golden_tokenizer();
  const auto& tokenizer = as_scales(loaded);
  auto config = infer::load_var(test::golden("var/var.pth")).weights.config;
  infer::check_fits(config, "a.pth", tokenizer, "b.pth");
  config.patch_nums = {1, 2, 4};
  CHECK_THAT(test::error_of([&] { infer::check_fits(config, "a.pth", tokenizer, "b.pth"); }),
             Contains("a.pth: has the scales 1 2 4, but b.pth has 1 2 3 4"));
  config.patch_nums = {1, 2, 3, 4};
  config.codebook_size = 128;
  CHECK_THAT(
      test::error_of([&] { infer::check_fits(config, "a.pth", tokenizer, "b.pth"); }),
      Contains("a.pth: has a vocabulary of 128, but the codebook of b.pth has 64 entries; use "
               "the tokenizer that the transformer was trained with"));
  config.codebook_size = 64;
  config.z_channels = 8;
  CHECK_THAT(test::error_of([&] { infer::check_fits(config, "a.pth", tokenizer, "b.pth"); }),
             Contains("a.pth: reads codes of 8 channels, but those of b.pth have 16; use the "
                      "tokenizer that the transformer was trained with"));

  const auto engine = golden_engine("var");
  const auto draw = [&](const VarRequest& request) {
    return test::error_of(
        [&] { generate_var(*engine, tokenizer, std::vector<VarRequest>{request}, greedy(1)); });
  };
  CHECK_THAT(draw({.label = 11}), Contains("class 11: expected 0 to 9"));
  CHECK_THAT(draw({.label = 0,
                   .given_L = torch::zeros({3}, torch::kLong),
                   .is_kept_L = torch::zeros({3}, torch::kBool)}),
             Contains("given codes: expected int64 and bool [30]"));
  CHECK_THAT(draw({.label = 0,
                   .given_L = torch::full({30}, 64, torch::kLong),
                   .is_kept_L = torch::zeros({30}, torch::kBool)}),
             Contains("given codes: 64 is outside the codebook of 64"));
  CHECK_THAT(test::error_of([&] {
               infer::kept_codes(torch::ones({3, 3}), {1, 2, 4});
             }),
             Contains("expected [4, 4]"));
  CHECK_THAT(test::error_of([&] { infer::load_var(test::golden("gpt_c2i/ckpt.pt")); }),
             Contains("not the weights of a VAR transformer"));
  const test::TempDir dir;
  config.z_channels = 16;
  config.dim = 96;
  test::write_file(dir / "wide.yaml", dump_config(config));
  CHECK_THAT(test::error_of([&] {
               infer::load_var(test::golden("var/var.pth"), {.config = dir / "wide.yaml"});
             }),
             Contains("not the weights of this VAR transformer") && Contains("pos_start is"));
  CHECK_THAT(test::error_of([&] { infer::validate(VarSettings{.cfg_scale = -1}); }),
             Contains("cfg-scale -1"));
}

TEST_CASE("multi-scale tokenizer: codes and pictures through the common interface",
          "[infer][golden]") {
  const auto loaded = load_golden_tokenizer();
  const auto image_B3SS = golden_tensor("var_vae/images.npy");
  const auto code_BL = loaded.model->encode(image_B3SS);
  std::vector<torch::Tensor> parts;
  for (int k = 0; k < 4; ++k) {
    parts.push_back(golden_tensor("var_vae/idx_" + std::to_string(k) + ".npy"));
  }
  CHECK(code_BL.equal(torch::cat(parts, 1)));
  CHECK(loaded.model->code_shape(8, 8) == std::vector<int64_t>{30});
  const auto recon = golden_tensor("var_vae/recon.npy");
  CHECK_THAT(loaded.model->decode(code_BL, 8, 8), AllClose(recon[3], test::kParity));
  const auto scales = loaded.model->decode_scales(code_BL);
  REQUIRE(scales.size() == 4);
  CHECK_THAT(scales[1], AllClose(recon[1], test::kParity));
  CHECK(loaded.image_size == 8);
  CHECK_THAT(loaded.model->fingerprint(), Contains("msvqvae-"));
  CHECK_THAT(test::error_of([&] { loaded.model->code_shape(16, 8); }), Contains("8 x 8"));
  CHECK_THAT(test::error_of([&] {
               infer::load_tokenizer(test::golden("var_vae/vae.pth"), {.device = "cpu"});
             }),
             Contains("4 scales") && Contains("model.patch_nums"));
}

}  // namespace vgen
