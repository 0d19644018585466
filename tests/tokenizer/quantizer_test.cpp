// The vector quantizer: laws, and values worked out from the plain formula.

#include "vgen/tokenizer/quantizer.h"

#include <catch2/catch.hpp>

#include "support/support.h"
#include "support/torch_support.h"

namespace vgen::tokenizer {
namespace {

using test::AllClose;

torch::Tensor unit_rows(const torch::Tensor& x) { return x / x.norm(2, -1, true).clamp_min(1e-12); }

TEST_CASE("quantizer: the straight-through gradient is that of normalisation", "[tokenizer]") {
  torch::manual_seed(0);
  VectorQuantizer quantizer(QuantizerConfig{.codebook_size = 32});
  const torch::Tensor z_BDhw = torch::randn({2, 8, 3, 3}, torch::requires_grad());
  const torch::Tensor upstream_BDhw = torch::randn({2, 8, 3, 3});
  quantizer->eval();
  const Quantized result = quantizer(z_BDhw);
  (result.quant_BDhw * upstream_BDhw).sum().backward();

  const torch::Tensor plain_BDhw = z_BDhw.detach().clone().requires_grad_();
  const torch::Tensor unit_BDhw = plain_BDhw / plain_BDhw.norm(2, 1, true);
  (unit_BDhw * upstream_BDhw).sum().backward();
  CHECK_THAT(z_BDhw.grad(), AllClose(plain_BDhw.grad(), test::kFloat32));
  CHECK_FALSE(quantizer->parameters()[0].grad().defined());
  CHECK_THAT(result.quant_BDhw,
             AllClose(quantizer->get_codebook_entry(result.index_N, 2, 3, 3), test::kFloat32));
}

TEST_CASE("quantizer: losses are the formulas of the paper's code", "[tokenizer]") {
  torch::manual_seed(1);
  VectorQuantizer quantizer(
      QuantizerConfig{.codebook_size = 16, .commit_loss_beta = 0.5, .entropy_loss_ratio = 0.1});
  quantizer->train();
  const torch::Tensor z_BDhw = torch::randn({2, 8, 2, 2}, torch::requires_grad());
  const Quantized result = quantizer(z_BDhw);

  const torch::Tensor z_ND = unit_rows(z_BDhw.detach().permute({0, 2, 3, 1}).reshape({-1, 8}));
  const torch::Tensor codes_VD = unit_rows(quantizer->parameters()[0].detach());
  const torch::Tensor d_NV = (z_ND.unsqueeze(1) - codes_VD).square().sum(-1);
  CHECK(result.index_N.equal(d_NV.argmin(1)));
  const double mse =
      (z_ND - codes_VD.index_select(0, result.index_N)).square().mean().item<double>();
  CHECK(result.losses.vq_loss.item<double>() == Approx(mse).epsilon(1e-4));
  CHECK(result.losses.commit_loss.item<double>() == Approx(0.5 * mse).epsilon(1e-4));
  const torch::Tensor a_NV = (-d_NV / 0.01).to(torch::kFloat64);
  const torch::Tensor p_NV = a_NV.softmax(-1), mean_V = p_NV.mean(0);
  const double entropy = (-(p_NV * (a_NV + 1e-5).log_softmax(-1)).sum(-1).mean() +
                          (mean_V * (mean_V + 1e-5).log()).sum())
                             .item<double>();
  CHECK(result.losses.entropy_loss.item<double>() == Approx(0.1 * entropy).epsilon(1e-3));

  // vq_loss moves the codebook alone, commit_loss the latent alone
  result.losses.vq_loss.backward({}, /*retain_graph=*/true);
  CHECK_FALSE(z_BDhw.grad().defined());
  CHECK(quantizer->parameters()[0].grad().abs().max().item<double>() > 0);
  quantizer->zero_grad();
  result.losses.commit_loss.backward();
  CHECK(z_BDhw.grad().abs().max().item<double>() > 0);
  CHECK_FALSE(quantizer->parameters()[0].grad().defined());
}

TEST_CASE("quantizer: usage counts the latest 65536 codes, zeros at first", "[tokenizer]") {
  torch::manual_seed(2);
  VectorQuantizer quantizer(QuantizerConfig{.codebook_size = 4, .codebook_embed_dim = 2});
  quantizer->train();
  const torch::NoGradGuard no_grad;
  torch::Tensor code_VD = quantizer->parameters()[0];
  code_VD.copy_(torch::tensor({{1.f, 0.f}, {0.f, 1.f}, {-1.f, 0.f}, {0.f, -1.f}}));
  const auto batch_of = [](float x, float y, int64_t count) {
    return torch::tensor({x, y}).view({1, 2, 1, 1}).expand({count, 2, 1, 1});
  };
  // the buffer holds zeros, so code 0 counts
  CHECK(quantizer(batch_of(0, 1, 3)).losses.codebook_usage.item<float>() == 0.5f);
  CHECK(quantizer(batch_of(-1, 0, 65532)).losses.codebook_usage.item<float>() == 0.75f);
  CHECK(quantizer(batch_of(-1, 0, 1)).losses.codebook_usage.item<float>() == 0.5f);
  const torch::Tensor used = quantizer->buffers()[0];
  CHECK(used.scalar_type() == torch::kFloat32);
  CHECK(used[0].item<float>() == 1);
  CHECK(used[65535].item<float>() == 2);
  CHECK(test::error_of([&] { quantizer(batch_of(1, 0, 65537)); }) ==
        "quantizer: 65537 codes in one batch, but codebook_show_usage counts at most 65536; use a "
        "smaller batch or image, or turn codebook_show_usage off");
  quantizer->eval();
  const torch::Tensor before = used.clone();
  CHECK(quantizer(batch_of(0, -1, 65537)).index_N.eq(3).all().item<bool>());
  CHECK(used.equal(before));
}

TEST_CASE("quantizer: codes are bounded and entries checked", "[tokenizer]") {
  torch::manual_seed(3);
  VectorQuantizer quantizer(QuantizerConfig{.codebook_size = 10});
  quantizer->eval();
  const torch::Tensor index_N = quantizer(torch::randn({3, 8, 5, 7}) * 100).index_N;
  CHECK(index_N.sizes() == torch::IntArrayRef{3 * 5 * 7});
  CHECK(index_N.min().item<int64_t>() >= 0);
  CHECK(index_N.max().item<int64_t>() < 10);
  const torch::Tensor entry =
      quantizer->get_codebook_entry(torch::tensor({{1, 9}}, torch::kInt32), 1, 1, 2);
  CHECK(entry.sizes() == torch::IntArrayRef{1, 8, 1, 2});
  const torch::Tensor code_VD = unit_rows(quantizer->parameters()[0].detach());
  CHECK_THAT(entry.select(3, 1).flatten(), AllClose(code_VD[9], test::kFloat32));
  CHECK(test::error_of([&] { quantizer->get_codebook_entry(torch::tensor({10}), 1, 1, 1); }) ==
        "quantizer: code 10 is outside the codebook of 10 codes");
  CHECK(test::error_of([&] { quantizer->get_codebook_entry(torch::tensor({-1}), 1, 1, 1); }) ==
        "quantizer: code -1 is outside the codebook of 10 codes");
  CHECK(test::error_of([&] { quantizer->get_codebook_entry(torch::tensor({1}), 1, 2, 2); }) ==
        "quantizer: 1 codes given for 1 latents of 2 x 2");
}

}  // namespace
}  // namespace vgen::tokenizer
