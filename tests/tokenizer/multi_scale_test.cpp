// VAR's tokenizer against the official code, and its own laws. K scales, V codes, Z latent
// channels.

#include <catch2/catch.hpp>
#include <set>

#include "support/support.h"
#include "support/torch_support.h"
#include "tokenizer/golden_weights.h"
#include "vgen/checkpoint/named_tensors.h"
#include "vgen/core/strings.h"
#include "vgen/io/json.h"
#include "vgen/io/safetensors.h"
#include "vgen/tokenizer/multi_scale_vqvae.h"

namespace vgen::tokenizer {
namespace {

using test::AllClose;
using test::golden_tensor;

MultiScaleVqvaeConfig golden_config() {
  MultiScaleVqvaeConfig config;
  config.ch = 32;
  config.ch_mult = {1, 1};
  config.z_channels = 16;
  config.codebook_size = 64;
  config.patch_nums = {1, 2, 3, 4};
  return config;
}

MultiScaleVqvae golden_model() {
  MultiScaleVqvae model(golden_config());
  test::load_golden(*model, "var_vae/vae.pth");
  model->eval();
  return model;
}

/// golden/var_vae/<kind>_0.npy, ..., one after the other.
torch::Tensor golden_codes(const std::string& kind, int64_t num_scales) {
  std::vector<torch::Tensor> scales;
  for (int64_t k = 0; k < num_scales; ++k) {
    scales.push_back(golden_tensor(str_cat("var_vae/", kind, "_", k, ".npy")));
  }
  return torch::cat(scales, 1);
}

std::vector<std::string> names_of(const torch::nn::Module& module) {
  std::vector<std::string> names;
  for (const auto& item : checkpoint::named_state(module)) names.push_back(item.name);
  return names;
}

TEST_CASE("multi-scale: names and sizes are the official ones", "[tokenizer][golden]") {
  MultiScaleVqvae model(golden_config());
  const auto names = names_of(*model);
  std::set<std::string> expected;
  for (const auto& item : io::load_state_dict(test::golden("var_vae/vae.pth")).tensors) {
    expected.insert(item.name);
  }
  CHECK(std::set<std::string>(names.begin(), names.end()) == expected);
  CHECK(names.size() == expected.size());

  MultiScaleVqvae released(MultiScaleVqvaeConfig{});
  int64_t num_parameters = 0;
  for (const torch::Tensor& parameter : released->parameters()) num_parameters += parameter.numel();
  CHECK(num_parameters == 108'948'355);
  CHECK(names_of(*released).size() == 324);
  CHECK(released->config().downsample() == 16);
  CHECK(released->config().image_size() == 256);
  const auto parameters = released->named_parameters();
  CHECK(parameters["encoder.down.4.attn.1.qkv.weight"].sizes() ==
        torch::IntArrayRef{1920, 640, 1, 1});
  CHECK(parameters["decoder.up.3.block.0.nin_shortcut.weight"].sizes() ==
        torch::IntArrayRef{320, 640, 1, 1});
  CHECK(parameters.contains("decoder.up.1.upsample.conv.weight"));
  CHECK_FALSE(parameters.contains("decoder.up.0.upsample.conv.weight"));
  CHECK(parameters["quant_conv.weight"].sizes() == torch::IntArrayRef{32, 32, 3, 3});
}

TEST_CASE("multi-scale: codes, latents and pictures of every scale", "[tokenizer][golden]") {
  const torch::NoGradGuard no_grad;
  MultiScaleVqvae model = golden_model();
  const torch::Tensor image_B3SS = golden_tensor("var_vae/images.npy");
  const torch::Tensor f_BZhw = model->encode_latent(image_B3SS);
  CHECK_THAT(f_BZhw, AllClose(golden_tensor("var_vae/f.npy"), test::kParity));

  const torch::Tensor index_BL = model->encode(image_B3SS);
  CHECK(index_BL.equal(golden_codes("idx", 4)));
  CHECK(model->quantize->encode(f_BZhw).equal(index_BL));
  CHECK(model->quantize(f_BZhw).index_BL.equal(index_BL));
  CHECK(model->encode(image_B3SS, {1, 3, 4}).equal(golden_codes("alt_idx", 3)));

  const auto latents = model->quantize->latents(index_BL);
  const auto images = model->decode_scales(index_BL);
  const torch::Tensor fhat = golden_tensor("var_vae/fhat.npy");
  const torch::Tensor recon = golden_tensor("var_vae/recon.npy");
  REQUIRE(latents.size() == 4);
  REQUIRE(images.size() == 4);
  for (size_t k = 0; k < 4; ++k) {
    INFO("scale " << k);
    CHECK_THAT(latents[k], AllClose(fhat[static_cast<int64_t>(k)], test::kParity));
    CHECK_THAT(images[k], AllClose(recon[static_cast<int64_t>(k)], test::kParity));
  }
  CHECK(model->quantize->latent(index_BL).equal(latents.back()));
  CHECK(model->decode_code(index_BL).equal(images.back()));
  CHECK_THAT(model->quantize(f_BZhw).quant_BZhw, AllClose(latents.back(), test::kFloat32));
}

TEST_CASE("multi-scale: pictures of given codes", "[tokenizer][golden]") {
  const torch::NoGradGuard no_grad;
  MultiScaleVqvae model = golden_model();
  const torch::Tensor index_BL = golden_codes("rand_idx", 4);
  const torch::Tensor expected = golden_tensor("var_vae/rand_img.npy");
  const auto images = model->decode_scales(index_BL.to(torch::kInt32));
  for (size_t k = 0; k < 4; ++k) {
    INFO("scale " << k);
    CHECK_THAT(images[k], AllClose(expected[static_cast<int64_t>(k)], test::kParity));
  }
}

TEST_CASE("multi-scale: what a transformer is shown", "[tokenizer][golden]") {
  MultiScaleVqvae model = golden_model();
  auto& quantizer = *model->quantize;
  for (const std::string kind : {"", "rand_"}) {
    INFO(kind);
    const torch::Tensor index_BL = golden_codes(kind + "idx", 4);
    const torch::Tensor input_BMZ = quantizer.teacher_input(index_BL);
    CHECK_FALSE(input_BMZ.requires_grad());
    CHECK_THAT(input_BMZ, AllClose(golden_tensor("var_vae/" + kind + "var_input.npy"), {1e-5, 0}));

    // The same step by step, as it is generated.
    const int64_t batch = index_BL.size(0);
    torch::Tensor fhat_BZhw = torch::zeros({batch, 16, 4, 4});
    int64_t code = 0, row = 0;
    for (int64_t k = 0; k < 4; ++k) {
      const int64_t p = quantizer.patch_nums()[static_cast<size_t>(k)];
      const torch::Tensor h_BZpp = quantizer.lookup(index_BL.slice(1, code, code + p * p))
                                       .transpose(1, 2)
                                       .reshape({batch, 16, p, p});
      quantizer.add_scale(k, h_BZpp, fhat_BZhw);
      code += p * p;
      if (k == 3) break;
      const torch::Tensor next = quantizer.next_input(k + 1, fhat_BZhw);
      CHECK_THAT(next, AllClose(input_BMZ.slice(1, row, row + next.size(1)), test::kFloat32));
      row += next.size(1);
    }
    CHECK_THAT(fhat_BZhw, AllClose(quantizer.latent(index_BL), test::kFloat32));
  }
}

TEST_CASE("multi-scale: the training forward", "[tokenizer][golden]") {
  MultiScaleVqvae model = golden_model();
  model->train();
  const auto output = model->forward(golden_tensor("var_vae/images.npy"));
  CHECK_THAT(output.image_B3SS,
             AllClose(golden_tensor("var_vae/forward_recon.npy"), test::kParity));
  CHECK_THAT(output.quantized.loss.reshape({1}),
             AllClose(golden_tensor("var_vae/forward_vq_loss.npy"), {1e-5, 1e-4}));
  CHECK(output.quantized.hits_KV.sum(1).equal(torch::tensor({2.f, 8.f, 18.f, 32.f})));
  CHECK(output.quantized.error_K.sizes() == torch::IntArrayRef{4});

  (output.image_B3SS.square().mean() + output.quantized.loss).backward();
  for (const auto& item : model->named_parameters()) {
    INFO(item.key());
    REQUIRE(item.value().grad().defined());
    CHECK(item.value().grad().isfinite().all().item<bool>());
  }
  for (const char* name : {"encoder.conv_in.weight", "quantize.quant_resi.qresi_ls.0.weight",
                           "quantize.quant_resi.qresi_ls.3.bias", "quantize.embedding.weight"}) {
    INFO(name);
    CHECK(model->named_parameters()[name].grad().abs().max().item<float>() > 0);
  }
}

TEST_CASE("multi-scale: the picture's gradient passes straight to the latent", "[tokenizer]") {
  torch::manual_seed(0);
  MultiScaleQuantizer quantizer(
      MultiScaleQuantizerConfig{.codebook_size = 32, .z_channels = 8, .patch_nums = {1, 2, 4}});
  const torch::Tensor f_BZhw = torch::randn({2, 8, 4, 4}, torch::requires_grad());
  const torch::Tensor upstream = torch::randn({2, 8, 4, 4});
  (quantizer(f_BZhw).quant_BZhw * upstream).sum().backward();
  CHECK(f_BZhw.grad().equal(upstream));
  for (const torch::Tensor& parameter : quantizer->parameters()) {
    CHECK_FALSE(parameter.grad().defined());
  }
}

TEST_CASE("multi-scale: sums that end early", "[tokenizer]") {
  torch::manual_seed(1);
  MultiScaleQuantizer quantizer(
      MultiScaleQuantizerConfig{.codebook_size = 32, .z_channels = 8, .patch_nums = {1, 2, 4}});
  const torch::NoGradGuard no_grad;
  quantizer->parameters().back().normal_();  // embedding.weight
  const torch::Tensor f_BZhw = torch::randn({3, 8, 4, 4});
  const auto whole = quantizer(f_BZhw);
  const auto latents = quantizer->latents(whole.index_BL);
  const auto cut = quantizer->forward_until(f_BZhw, torch::tensor({0, 2, 1}));
  CHECK_THAT(cut.quant_BZhw[0], AllClose(latents[0][0], test::kFloat32));
  CHECK_THAT(cut.quant_BZhw[1], AllClose(latents[2][1], test::kFloat32));
  CHECK_THAT(cut.quant_BZhw[2], AllClose(latents[1][2], test::kFloat32));
  CHECK(cut.hits_KV.sum(1).equal(torch::tensor({3.f, 8.f, 16.f})));
}

TEST_CASE("multi-scale: phi of each scale, all of the official table", "[tokenizer][golden]") {
  const io::Json table = io::parse_json(test::read_file(test::golden("schedules/phi_table.json")));
  CHECK(table.members.size() == 130);
  for (const auto& [key, expected] : table.members) {
    INFO("phi, scales: " << key);
    const auto parts = split(key, ',');
    std::vector<int64_t> values;
    for (const io::Json& item : expected.items) values.push_back(item.integer);
    CHECK(phi_of_scales(std::stoll(parts[1]), std::stoll(parts[0])) == values);
  }
  CHECK(phi_of_scales(10, 4) == std::vector<int64_t>{0, 0, 1, 1, 1, 2, 2, 3, 3, 3});
  CHECK(phi_of_scales(14, 4) == std::vector<int64_t>{0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3});
  CHECK(phi_of_scales(1, 4) == std::vector<int64_t>{0});
}

TEST_CASE("multi-scale: one phi, one for each scale, none", "[tokenizer]") {
  torch::manual_seed(2);
  MultiScaleQuantizerConfig config{
      .codebook_size = 16, .z_channels = 4, .patch_nums = {1, 2, 4}, .share_quant_resi = 1};
  const auto names = [](const MultiScaleQuantizerConfig& c) {
    return names_of(*MultiScaleQuantizer(c));
  };
  CHECK(names(config) == std::vector<std::string>{"ema_vocab_hit_SV", "quant_resi.qresi.weight",
                                                  "quant_resi.qresi.bias", "embedding.weight"});
  config.share_quant_resi = 0;
  CHECK(names(config) == std::vector<std::string>{"ema_vocab_hit_SV", "quant_resi.0.weight",
                                                  "quant_resi.0.bias", "quant_resi.1.weight",
                                                  "quant_resi.1.bias", "quant_resi.2.weight",
                                                  "quant_resi.2.bias", "embedding.weight"});
  config.quant_resi = 0;
  CHECK(names(config) == std::vector<std::string>{"ema_vocab_hit_SV", "embedding.weight"});
  MultiScaleQuantizer plain(config);
  const torch::Tensor h_BZpp = torch::randn({1, 4, 4, 4});
  CHECK(plain->contribution(2, h_BZpp).equal(h_BZpp));
}

/// phi(x) = factor x, of every scale that uses this one.
void make_multiple(torch::nn::Module& quantizer, const std::string& phi, double factor) {
  const torch::NoGradGuard no_grad;
  const auto parameters = quantizer.named_parameters();
  torch::Tensor weight = parameters[phi + ".weight"];  // phi(x) = x / 2 + conv(x) / 2
  weight.zero_();
  for (int64_t z = 0; z < weight.size(0); ++z) weight[z][z][1][1] = 2 * factor - 1;
  parameters[phi + ".bias"].zero_();
}

TEST_CASE("multi-scale: each scale goes through its own phi, or all through one", "[tokenizer]") {
  const bool is_shared = GENERATE(true, false);
  CAPTURE(is_shared);
  torch::manual_seed(7);
  const MultiScaleQuantizerConfig config{.codebook_size = 24,
                                         .z_channels = 4,
                                         .patch_nums = {1, 2, 4},
                                         .share_quant_resi = is_shared ? 1 : 0};
  MultiScaleQuantizer quantizer(config);
  const std::vector<double> factors =
      is_shared ? std::vector<double>{0.75, 0.75, 0.75} : std::vector<double>{1, 0.5, 0.25};
  for (size_t k = 0; k < 3; ++k) {
    make_multiple(*quantizer, is_shared ? "quant_resi.qresi" : str_cat("quant_resi.", k),
                  factors[k]);
  }
  const torch::NoGradGuard no_grad;
  quantizer->eval();
  torch::Tensor codes_VZ = quantizer->named_parameters()["embedding.weight"];
  codes_VZ.normal_();

  // The same by hand.
  const torch::Tensor f_BZhw = torch::randn({2, 4, 4, 4});
  torch::Tensor fhat_BZhw = torch::zeros_like(f_BZhw);
  std::vector<torch::Tensor> indices, sums;
  for (size_t k = 0; k < 3; ++k) {
    const int64_t p = config.patch_nums[k];
    const torch::Tensor row_NZ = torch::adaptive_avg_pool2d(f_BZhw - fhat_BZhw, {p, p})
                                     .permute({0, 2, 3, 1})
                                     .reshape({-1, 4});
    const torch::Tensor index_N = torch::cdist(row_NZ, codes_VZ).argmin(1);
    const torch::Tensor h_BZpp =
        codes_VZ.index_select(0, index_N).view({2, p, p, 4}).permute({0, 3, 1, 2});
    fhat_BZhw = fhat_BZhw + factors[k] * at::upsample_bicubic2d(h_BZpp, {4, 4}, false);
    indices.push_back(index_N.view({2, p * p}));
    sums.push_back(fhat_BZhw);
  }
  const auto check = [&](MultiScaleQuantizer& subject) {
    const auto output = subject(f_BZhw);
    CHECK(output.index_BL.equal(torch::cat(indices, 1)));
    CHECK(subject->encode(f_BZhw).equal(output.index_BL));
    CHECK_THAT(output.quant_BZhw, AllClose(fhat_BZhw, test::kFloat32));
    const auto latents = subject->latents(output.index_BL);
    for (size_t k = 0; k < 3; ++k) {
      CHECK_THAT(latents[k], AllClose(sums[k], test::kFloat32));
      CHECK_THAT(output.error_K[static_cast<int64_t>(k)],
                 AllClose(torch::mse_loss(sums[k], f_BZhw), test::kFloat32));
    }
    CHECK_THAT(output.power, AllClose(f_BZhw.square().mean(), test::kFloat32));
  };
  check(quantizer);

  const test::TempDir temp;
  io::write_safetensors(temp / "a.safetensors",
                        checkpoint::as_arrays(checkpoint::named_state(*quantizer)));
  MultiScaleQuantizer loaded(config);
  loaded->eval();
  checkpoint::load_into(*loaded, io::load_state_dict(temp / "a.safetensors"));
  check(loaded);
}

TEST_CASE("multi-scale: averages of hits count once per scale", "[tokenizer]") {
  torch::manual_seed(3);
  MultiScaleQuantizer quantizer(
      MultiScaleQuantizerConfig{.codebook_size = 8, .z_channels = 4, .patch_nums = {1, 2}});
  const torch::NoGradGuard no_grad;
  const torch::Tensor f_BZhw = torch::randn({2, 4, 2, 2});
  const torch::Tensor hits_KV = quantizer(f_BZhw).hits_KV;
  const torch::Tensor average_KV = quantizer->ema_vocab_hit_KV();
  // quirk: only the first scale of the first step is copied
  CHECK_THAT(average_KV[0], AllClose(hits_KV[0], test::kFloat32));
  CHECK_THAT(average_KV[1], AllClose(0.1 * hits_KV[1], test::kFloat32));
  CHECK(quantizer->hits_recorded() == 2);
  quantizer(f_BZhw);
  CHECK_THAT(average_KV[1], AllClose(0.19 * hits_KV[1], test::kFloat32));
  quantizer->set_hits_recorded(100);
  quantizer(f_BZhw);
  CHECK_THAT(average_KV[1], AllClose((0.99 * 0.19 + 0.01) * hits_KV[1], test::kFloat32));
  const torch::Tensor before = average_KV.clone();
  quantizer->eval();
  CHECK_FALSE(quantizer(f_BZhw).loss.defined());
  CHECK(average_KV.equal(before));
}

TEST_CASE("multi-scale: wrong inputs and configs are told in one line", "[tokenizer]") {
  MultiScaleVqvae model = golden_model();
  CHECK(
      test::error_of([&] {
        model->encode(torch::zeros({1, 3, 10, 8}));
      }) ==
      "tokenizer: image of 10 x 8, but the scales [1, 2, 3, 4] with cells of 2 pixels make 8 x 8; "
      "resize or crop it");
  CHECK(test::error_of([&] {
          model->encode(torch::zeros({1, 1, 8, 8}));
        }) == "tokenizer: expected floating images (B, 3, H, W), got Float [1, 1, 8, 8]");
  CHECK(test::error_of([&] {
          model->decode(torch::zeros({1, 16, 8, 8}));
        }) == "tokenizer: expected latents (B, 16, 4, 4), got [1, 16, 8, 8]");
  CHECK(test::error_of([&] {
          model->decode_code(torch::zeros({1, 29}, torch::kInt64));
        }) == "quantizer: expected codes (B, 30) of the scales [1, 2, 3, 4], got Long [1, 29]");
  CHECK(test::error_of([&] {
          model->decode_code(torch::full({1, 30}, 64, torch::kInt64));
        }) == "quantizer: code 64 is outside the codebook of 64 codes");
  CHECK(test::error_of([&] {
          model->decode_code(torch::full({1, 30}, -1, torch::kInt64));
        }) == "quantizer: code -1 is outside the codebook of 64 codes");
  CHECK(test::error_of([&] {
          model->quantize->encode(torch::zeros({1, 16, 4, 4}), {1, 3});
        }) ==
        "quantizer: expected floating latents (B, 16, 3, 3) for a last scale of 3, got Float "
        "[1, 16, 4, 4]");
  CHECK(test::error_of([&] {
          model->quantize->encode(torch::zeros({1, 16, 4, 4}), {2, 2, 4});
        }) == "patch_nums is [2, 2, 4], expected sides that grow from at least 1");

  MultiScaleVqvaeConfig config = golden_config();
  config.patch_nums.clear();
  CHECK(test::error_of([&] { validate(config); }) ==
        "model.patch_nums is empty, expected the side of each scale");
  config = golden_config();
  config.quant_conv_kernel = 2;
  CHECK(test::error_of([&] { validate(config); }) ==
        "model.quant_conv_kernel is 2, expected an odd number");
  config.ch = 33;
  CHECK(test::error_of([&] { validate(config); }) ==
        "model.ch is 33, expected a multiple of 32, the number of normalisation groups");
}

}  // namespace
}  // namespace vgen::tokenizer
