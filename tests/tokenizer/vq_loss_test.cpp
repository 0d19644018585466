// Losses, discriminators and LPIPS against the official code and their formulas.

#include "vgen/tokenizer/vq_loss.h"

#include <catch2/catch.hpp>
#include <cmath>

#include "support/support.h"
#include "support/torch_support.h"
#include "tokenizer/golden_weights.h"
#include "vgen/checkpoint/named_tensors.h"

namespace vgen::tokenizer {
namespace {

using test::AllClose;
using test::golden_tensor;

NamedWeights golden_named(const std::string& name) {
  NamedWeights weights;
  for (const io::NamedArray& item : io::load_state_dict(test::golden(name)).tensors) {
    weights[item.name] = checkpoint::as_tensor(item.array).clone();
  }
  return weights;
}

/// The hash of golden/lpips/meta.json: element i of the tensor `tag`, in [-1, 1).
double formula_value(uint32_t i, uint32_t tag) {
  uint32_t h = i + 0x9E3779B9u * (tag + 1);
  h ^= h >> 16;
  h *= 0x85EBCA6Bu;
  h ^= h >> 13;
  h *= 0xC2B2AE35u;
  h ^= h >> 16;
  return (h / 4294967296.0 - 0.5) * 2;
}

torch::Tensor formula_tensor(torch::IntArrayRef shape, uint32_t tag, double scale) {
  torch::Tensor tensor = torch::empty(shape);
  float* data = tensor.data_ptr<float>();
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    data[i] = static_cast<float>(formula_value(static_cast<uint32_t>(i), tag) * scale);
  }
  return tensor;
}

Lpips formula_lpips() {
  const int index[] = {0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28};
  const int64_t width[] = {64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512};
  const int64_t lin_width[] = {64, 128, 256, 512, 512};
  NamedWeights vgg, lin;
  int64_t channels = 3;
  for (uint32_t t = 0; t < 13; ++t) {
    const std::string name = str_cat("features.", index[t]);
    const double scale = std::sqrt(6.0 / (static_cast<double>(channels) * 9));
    vgg[name + ".weight"] = formula_tensor({width[t], channels, 3, 3}, 2 * t, scale);
    vgg[name + ".bias"] = formula_tensor({width[t]}, 2 * t + 1, 0.1);
    channels = width[t];
  }
  for (uint32_t k = 0; k < 5; ++k) {
    lin[str_cat("lin", k, ".model.1.weight")] =
        formula_tensor({1, lin_width[k], 1, 1}, 100 + k, 1).abs();
  }
  CHECK(vgg["features.0.weight"].flatten()[1].item<float>() == 0.08333844691514969f);
  CHECK(vgg["features.28.weight"].flatten()[3].item<float>() == -0.015331431291997433f);
  CHECK(lin["lin4.model.1.weight"].flatten()[2].item<float>() == 0.9741585850715637f);
  return Lpips(vgg, lin);
}

TEST_CASE("lpips: the official code's values at full width", "[tokenizer][golden]") {
  const torch::NoGradGuard no_grad;
  Lpips lpips = formula_lpips();
  lpips->eval();
  for (const std::string pair : {"0", "1"}) {
    const torch::Tensor a_B3HW = golden_tensor("lpips/a_" + pair + ".npy");
    const torch::Tensor b_B3HW = golden_tensor("lpips/b_" + pair + ".npy");
    std::vector<torch::Tensor> means;
    for (const torch::Tensor& tap : lpips->features(a_B3HW)) means.push_back(tap.mean());
    CHECK_THAT(torch::stack(means),
               AllClose(golden_tensor("lpips/feature_mean_" + pair + ".npy"), {1e-5, 1e-4}));
    CHECK_THAT(lpips(a_B3HW, b_B3HW),
               AllClose(golden_tensor("lpips/value_" + pair + ".npy"), {1e-6, 1e-4}));
    CHECK(lpips(a_B3HW, a_B3HW).abs().max().item<double>() == 0);
  }
}

TEST_CASE("lpips: narrow weights, dropout only where asked for, frozen", "[tokenizer][golden]") {
  Lpips lpips(golden_named("train_vq/vgg16.pth"), golden_named("train_vq/vgg_lpips.pth"));
  const torch::Tensor images = golden_tensor("train_vq/images.npy");
  const torch::Tensor expected = golden_tensor("train_vq/lpips_0_1.npy");
  lpips->train();
  CHECK_THAT(lpips(images[0], images[1]), AllClose(expected, test::kParity));
  lpips->use_dropout = true;
  CHECK_FALSE(torch::allclose(lpips(images[0], images[1]), expected, 1e-3, 1e-3));
  lpips->eval();
  CHECK_THAT(lpips(images[0], images[1]), AllClose(expected, test::kParity));
  for (const torch::Tensor& parameter : lpips->parameters()) CHECK_FALSE(parameter.requires_grad());
  const torch::Tensor image_B3HW = images[0].clone().requires_grad_();
  lpips(image_B3HW, images[1]).sum().backward();
  CHECK(image_B3HW.grad().abs().max().item<double>() > 0);
}

TEST_CASE("lpips: missing and misshaped weights say where to get them", "[tokenizer]") {
  const NamedWeights vgg = golden_named("train_vq/vgg16.pth");
  const NamedWeights lin = golden_named("train_vq/vgg_lpips.pth");
  NamedWeights broken = vgg;
  broken.erase("features.12.bias");
  CHECK(test::error_of([&] { Lpips(broken, lin); }) ==
        "LPIPS: the VGG16 weights have no tensor 'features.12.bias'; " + lpips_weights_help());
  broken = vgg;
  broken["features.5.weight"] = torch::zeros({16, 8, 1, 1});
  CHECK(test::error_of([&] { Lpips(broken, lin); }) ==
        "LPIPS: features.5.weight is [16, 8, 1, 1], expected [16, 8, 3, 3]; " +
            lpips_weights_help());
  broken["features.5.weight"] = torch::zeros({16});
  CHECK(test::error_of([&] { Lpips(broken, lin); }) ==
        "LPIPS: features.5.weight is [16], expected four dimensions; " + lpips_weights_help());
  broken = lin;
  broken["lin1.model.1.weight"] = torch::zeros({1, 17, 1, 1});
  CHECK(test::error_of([&] { Lpips(vgg, broken); }) ==
        "LPIPS: lin1.model.1.weight is [1, 17, 1, 1], expected [1, 16, 1, 1]; " +
            lpips_weights_help());
  Lpips lpips(vgg, lin);
  CHECK(test::error_of([&] {
          lpips(torch::zeros({1, 3, 8, 8}), torch::zeros({1, 3, 8, 8}));
        }) == "LPIPS: images of [1, 3, 8, 8], expected (B, 3, H, W) with sides of at least 16");
  CHECK(test::error_of([&] {
          lpips(torch::zeros({1, 3, 16, 16}), torch::zeros({2, 3, 16, 16}));
        }) == "LPIPS: images of [1, 3, 16, 16] and [2, 3, 16, 16], expected equal shapes");
  CHECK(test::error_of([&] { VqLoss(VqLossConfig{}, 32, Lpips(nullptr)); }) ==
        "loss.perceptual_weight is 1, but no LPIPS weights are given; " + lpips_weights_help());
}

TEST_CASE("patchgan: the official code's values in both modes", "[tokenizer][golden]") {
  const torch::NoGradGuard no_grad;
  Discriminator patchgan = make_discriminator({.disc_dim = 8});
  test::load_golden(*patchgan, "train_vq/init.pt", "discriminator");
  const torch::Tensor image_B3HW = golden_tensor("train_vq/images.npy")[0];
  patchgan->eval();
  CHECK_THAT(patchgan->forward(image_B3HW),
             AllClose(golden_tensor("train_vq/disc_eval.npy"), test::kParity));
  patchgan->train();
  CHECK_THAT(patchgan->forward(image_B3HW),
             AllClose(golden_tensor("train_vq/disc_train.npy"), test::kParity));
}

TEST_CASE("discriminators: official sizes, names and output shapes", "[tokenizer]") {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(0);
  const auto num_parameters = [](const Discriminator& module) {
    int64_t count = 0;
    for (const torch::Tensor& parameter : module->parameters()) count += parameter.numel();
    return count;
  };
  const auto num_entries = [](const Discriminator& module) {
    return module->parameters().size() + module->buffers().size();
  };
  Discriminator patchgan = make_discriminator({});
  CHECK(num_parameters(patchgan) == 2'765'633);
  CHECK(patchgan->forward(torch::zeros({1, 3, 256, 256})).sizes() ==
        torch::IntArrayRef{1, 1, 30, 30});
  CHECK(patchgan->named_parameters()["main.5.weight"].std().item<double>() ==
        Approx(0.02).epsilon(0.05));
  CHECK(patchgan->named_parameters()["main.9.weight"].mean().item<double>() ==
        Approx(1).epsilon(0.01));

  Discriminator stylegan = make_discriminator({.disc_type = "stylegan", .image_size = 256});
  CHECK(num_parameters(stylegan) == 36'500'225);
  CHECK(num_entries(stylegan) == 62);
  const auto names = stylegan->named_parameters();
  for (const char* name : {"blocks.0.weight", "blocks.2.conv_res.bias", "blocks.7.net.2.weight",
                           "blocks.3.downsample.1.weight", "final_conv.0.bias",
                           "final_linear.0.weight", "final_linear.2.bias"}) {
    INFO(name);
    CHECK(names.contains(name));
  }
  CHECK(stylegan->named_buffers().contains("blocks.2.downsample.0.f"));
  Discriminator large = make_discriminator({.disc_type = "stylegan", .image_size = 512});
  CHECK(num_parameters(large) == 36'593'793);
  CHECK(num_entries(large) == 71);
  Discriminator small = make_discriminator({.disc_type = "stylegan", .image_size = 32});
  CHECK(small->forward(torch::randn({2, 3, 32, 32})).sizes() == torch::IntArrayRef{2, 1});

  CHECK(test::error_of([&] {
          small->forward(torch::zeros({1, 3, 16, 32}));
        }) == "stylegan discriminator: image of 16 x 32, made for 32 x 32");
  CHECK(test::error_of([] { make_discriminator({.disc_type = "stylegan", .image_size = 48}); }) ==
        "stylegan discriminator: image size 48, expected a power of two from 8 to 1024");
  CHECK(test::error_of([] { make_discriminator({.disc_type = "gan"}); }) ==
        "disc_type 'gan' is unknown, expected patchgan or stylegan");
  CHECK(test::error_of([] { make_discriminator({.disc_dim = 0}); }) ==
        "patchgan: disc_dim 0 and disc_num_layers 3, expected both at least 1");
}

TEST_CASE("stylegan discriminator: the official code's logits and gradient",
          "[tokenizer][golden]") {
  Discriminator stylegan = make_discriminator({.disc_type = "stylegan", .image_size = 32});
  {
    const torch::NoGradGuard no_grad;
    uint32_t tag = 0;
    for (torch::Tensor& parameter : stylegan->parameters()) {
      const double fan_in = parameter.dim() > 1 ? static_cast<double>(parameter[0].numel()) : 100;
      parameter.copy_(formula_tensor(parameter.sizes(), tag++, std::sqrt(3 / fan_in)));
    }
  }
  const torch::Tensor image_B3HW = formula_tensor({2, 3, 32, 32}, 1000, 1).requires_grad_();
  const torch::Tensor logits_B1 = stylegan->forward(image_B3HW);
  logits_B1.sum().backward();
  CHECK_THAT(logits_B1, AllClose(golden_tensor("stylegan/logits.npy"), test::kFloat32));
  // In the norm: where an input of a leaky ReLU is rounding noise, its slope is too.
  const torch::Tensor expected = golden_tensor("stylegan/input_grad.npy");
  CHECK((image_B3HW.grad() - expected).norm().item<double>() <
        5e-3 * expected.norm().item<double>());
}

TEST_CASE("vq_loss: adversarial losses are their formulas, quirks included", "[tokenizer]") {
  const torch::Tensor real = torch::tensor({0.5f, 2.0f}, torch::requires_grad());
  const torch::Tensor fake = torch::tensor({-3.0f, 0.25f}, torch::requires_grad());
  const auto value = [&](const char* name) {
    return discriminator_loss(name, real, fake).item<double>();
  };
  CHECK(value("hinge") == Approx(0.5 * (0.25 + 0.625)));
  const auto softplus = [](double x) { return std::log1p(std::exp(x)); };
  CHECK(value("vanilla") ==
        Approx(0.25 * (softplus(-0.5) + softplus(-2) + softplus(-3) + softplus(0.25))));
  const auto bce = [](double logit, double target) {
    return std::log1p(std::exp(-logit)) + (1 - target) * logit;
  };
  CHECK(value("non-saturating") ==
        Approx(0.25 * (bce(1, 0.5) + bce(1, 2.0) + bce(0, -3.0) + bce(0, 0.25))));
  discriminator_loss("non-saturating", real, fake).backward();
  CHECK_THAT(real.grad(), AllClose(torch::tensor({-0.25f, -0.25f}), test::kFloat32));
  CHECK(fake.grad().eq(0).all().item<bool>());
  CHECK(generator_adversarial_loss("hinge", fake).item<double>() == Approx(1.375));
  CHECK(generator_adversarial_loss("non-saturating", fake).item<double>() ==
        Approx(0.5 * (bce(1, -3.0) + bce(1, 0.25))));
  CHECK(test::error_of([&] { discriminator_loss("wgan", real, fake); }) ==
        "disc_loss 'wgan' is unknown, expected hinge, vanilla or non-saturating");
  CHECK(test::error_of([&] { generator_adversarial_loss("vanilla", fake); }) ==
        "gen_adv_loss 'vanilla' is unknown, expected hinge or non-saturating");
}

VqLossConfig small_loss_config() {
  VqLossConfig config;
  config.perceptual_weight = 0;
  config.disc_dim = 8;
  config.disc_start = 5;
  return config;
}

TEST_CASE("vq_loss: the discriminator starts at disc_start and is never pushed by the generator",
          "[tokenizer]") {
  torch::manual_seed(0);
  VqLoss loss(small_loss_config(), 32, Lpips(nullptr));
  const torch::Tensor image_B3HW = torch::rand({2, 3, 32, 32}) * 2 - 1;
  const torch::Tensor recon_B3HW = (image_B3HW * 0.9).requires_grad_();
  const auto terms_of = [](const LossTerms& result) {
    std::map<std::string, double> terms;
    for (const auto& [name, value] : result.terms) terms[name] = value.item<double>();
    return terms;
  };
  const auto before = terms_of(loss->generator_loss({image_B3HW, recon_B3HW, {}, 4, {}}));
  CHECK(before.at("gen_loss") == Approx(before.at("rec_loss")));
  CHECK(loss->discriminator->named_buffers()["main.3.num_batches_tracked"].item<int64_t>() == 1);
  LossTerms disc = loss->discriminator_loss(image_B3HW, recon_B3HW, 4);
  CHECK(disc.loss.item<double>() == 0);
  disc.loss.backward();
  for (const torch::Tensor& parameter : loss->discriminator->parameters()) {
    CHECK(parameter.grad().eq(0).all().item<bool>());
  }
  loss->zero_grad();

  LossTerms after = loss->generator_loss({image_B3HW, recon_B3HW, {}, 5, {}});
  const auto terms = terms_of(after);
  CHECK(terms.at("gen_loss") ==
        Approx(terms.at("rec_loss") + 0.5 * terms.at("gen_adv_loss")).epsilon(1e-5));
  after.loss.backward();
  for (const torch::Tensor& parameter : loss->discriminator->parameters()) {
    CHECK(parameter.requires_grad());
    CHECK_FALSE(parameter.grad().defined());
  }
  disc = loss->discriminator_loss(image_B3HW, recon_B3HW, 5);
  disc.loss.backward();
  CHECK(terms_of(disc).at("disc_loss") > 0);
  CHECK(loss->discriminator->parameters()[0].grad().abs().max().item<double>() > 0);
}

TEST_CASE("vq_loss: the adaptive weight is the ratio of gradient norms", "[tokenizer]") {
  torch::manual_seed(0);
  VqLossConfig config = small_loss_config();
  config.disc_adaptive_weight = true;
  config.disc_start = 0;
  config.reconstruction_loss = "l1";
  VqLoss loss(config, 32, Lpips(nullptr));
  loss->eval();
  const torch::Tensor weight = torch::randn({3, 3, 1, 1}, torch::requires_grad());
  const torch::Tensor image_B3HW = torch::rand({2, 3, 32, 32});
  const auto recon = [&] { return at::conv2d(image_B3HW, weight); };
  const LossTerms result = loss->generator_loss({image_B3HW, recon(), {}, 1, weight});
  std::map<std::string, torch::Tensor> terms(result.terms.begin(), result.terms.end());
  const auto norm_of = [&](const torch::Tensor& term) {
    return torch::autograd::grad({term}, {weight})[0].norm().item<double>();
  };
  const double rec_norm = norm_of((image_B3HW - recon()).abs().mean());
  const double adv_norm = norm_of(-loss->discriminator->forward(recon()).mean());
  CHECK(terms["disc_adaptive_weight"].item<double>() ==
        Approx(rec_norm / (adv_norm + 1e-4)).epsilon(1e-3));
  CHECK(
      terms["gen_loss"].item<double>() ==
      Approx(terms["rec_loss"].item<double>() + 0.5 * terms["disc_adaptive_weight"].item<double>() *
                                                    terms["gen_adv_loss"].item<double>())
          .epsilon(1e-4));
}

}  // namespace
}  // namespace vgen::tokenizer
