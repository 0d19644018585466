// What keeps a multi-scale codebook alive. K scales, V codes.

#include "vgen/tokenizer/codebook_care.h"

#include <catch2/catch.hpp>

#include "support/torch_support.h"

namespace vgen::tokenizer {
namespace {

using test::AllClose;

MultiScaleQuantizer small_quantizer() {
  torch::manual_seed(0);
  return MultiScaleQuantizer(
      MultiScaleQuantizerConfig{.codebook_size = 12, .z_channels = 4, .patch_nums = {1, 2, 4}});
}

Rng test_rng(uint64_t index = 0) { return Rng(1, Purpose::kTest, 0, index); }

/// Whether each row of `rows` is also one of `among`, bool (N).
torch::Tensor is_among(const torch::Tensor& rows, const torch::Tensor& among) {
  return rows.unsqueeze(1).eq(among).all(-1).any(1);
}

TEST_CASE("codebook: a scale uses a code by its own even share", "[tokenizer]") {
  MultiScaleQuantizer quantizer = small_quantizer();
  torch::Tensor hits_KV = quantizer->ema_vocab_hit_KV();
  CHECK(used_codes_KV(*quantizer, 6, 0.5).any().item<bool>() == false);
  // even shares of 6 images: 6 p^2 / 12 = 0.5, 2, 8
  hits_KV.select(1, 3).copy_(torch::tensor({0.25f, 0.9f, 4.1f}));
  const torch::Tensor used_KV = used_codes_KV(*quantizer, 6, 0.5);
  CHECK(used_KV.select(1, 3).equal(torch::tensor({true, false, true})));
  CHECK(used_KV.sum().item<int64_t>() == 2);
}

TEST_CASE("codebook: dead codes move to vectors of the batch, shared by side", "[tokenizer]") {
  MultiScaleQuantizer quantizer = small_quantizer();
  const torch::Tensor f_BZhw = torch::randn({6, 4, 4, 4});
  CHECK(reseed_codes(*quantizer, f_BZhw, 0.08, test_rng()) == 12);
  const torch::Tensor codes_VZ = quantizer->codebook_VZ().detach();
  const torch::Tensor hits_KV = quantizer->ema_vocab_hit_KV();
  CHECK(hits_KV.gt(0).sum(1).equal(torch::tensor({2, 4, 6})));
  CHECK(hits_KV.sum(1).equal(torch::tensor({2 * 0.5f, 4 * 2.f, 6 * 8.f})));
  CHECK(is_among(codes_VZ.slice(0, 0, 2), MultiScaleQuantizerImpl::area_rows(f_BZhw, 1))
            .all()
            .item<bool>());
  CHECK(used_codes_KV(*quantizer, 6, 0.08).any(0).all().item<bool>());
  CHECK(quantizer->codebook_VZ().requires_grad());

  // All live now.
  const torch::Tensor before = codes_VZ.clone();
  CHECK(reseed_codes(*quantizer, f_BZhw, 0.08, test_rng()) == 0);
  CHECK(codes_VZ.equal(before));
}

TEST_CASE("codebook: living codes stay, the draw is a function of its number", "[tokenizer]") {
  const torch::Tensor f_BZhw = torch::randn({6, 4, 4, 4});
  std::vector<torch::Tensor> codes;
  for (const uint64_t index : {7, 7, 8, 9}) {
    MultiScaleQuantizer quantizer = small_quantizer();
    const torch::Tensor before = quantizer->codebook_VZ().detach().clone();
    quantizer->ema_vocab_hit_KV().slice(1, 2).fill_(9);  // all but codes 0 and 1
    CHECK(reseed_codes(*quantizer, f_BZhw, 0.08, test_rng(index)) == 2);
    codes.push_back(quantizer->codebook_VZ().detach());
    CHECK(codes.back().slice(0, 2).equal(before.slice(0, 2)));
    CHECK_FALSE(codes.back()[0].equal(before[0]));
    CHECK_FALSE(codes.back()[1].equal(before[1]));
  }
  CHECK(codes[0].equal(codes[1]));
  CHECK_FALSE((codes[0].equal(codes[2]) && codes[0].equal(codes[3])));
}

TEST_CASE("codebook: a moved code describes the batch better", "[tokenizer]") {
  torch::manual_seed(0);
  MultiScaleQuantizer quantizer(MultiScaleQuantizerConfig{
      .codebook_size = 12, .z_channels = 4, .patch_nums = {1, 2, 4}, .quant_resi = 0});
  const torch::NoGradGuard no_grad;
  const torch::Tensor f_BZhw = torch::randn({6, 4, 4, 4});
  const auto error = [&] {
    quantizer->eval();
    return quantizer(f_BZhw).error_K[2].item<double>();
  };
  const double before = error();
  reseed_codes(*quantizer, f_BZhw, 0.08, test_rng());
  CHECK(error() < 0.8 * before);
}

TEST_CASE("codebook: few vectors serve the finer scales", "[tokenizer]") {
  torch::manual_seed(1);
  MultiScaleQuantizer quantizer(
      MultiScaleQuantizerConfig{.codebook_size = 30, .z_channels = 4, .patch_nums = {1, 2, 4}});
  // 1, 4 and 16 vectors for 5, 10 and all other codes
  CHECK(reseed_codes(*quantizer, torch::randn({1, 4, 4, 4}), 0.08, test_rng()) == 21);
  CHECK(quantizer->ema_vocab_hit_KV().gt(0).sum(1).equal(torch::tensor({1, 4, 16})));
}

TEST_CASE("codebook: how many sums end early, and where", "[tokenizer]") {
  CHECK(draw_last_scales(50, 4, 0, test_rng()).eq(3).all().item<bool>());
  const torch::Tensor all_B = draw_last_scales(600, 4, 1, test_rng());
  for (const int64_t scale : {0, 1, 2}) {
    CHECK(all_B.eq(scale).sum().item<int64_t>() == Approx(200).margin(40));
  }
  const torch::Tensor some_B = draw_last_scales(1000, 4, 0.1, test_rng());
  CHECK(some_B.ne(3).sum().item<int64_t>() == Approx(100).margin(30));
  CHECK(draw_last_scales(1000, 4, 0.1, test_rng()).equal(some_B));
}

}  // namespace
}  // namespace vgen::tokenizer
