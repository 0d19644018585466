// Layers whose batch is shared by ranks, which are threads: the values and gradients of one process
// that has the whole batch. B batch, C channels, N rows, V codes.

#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <functional>

#include "support/ranks.h"
#include "support/torch_support.h"
#include "vgen/nn/batch_norm.h"
#include "vgen/tokenizer/multi_scale_quantizer.h"
#include "vgen/tokenizer/quantizer.h"
#include "vgen/train/group_ranks.h"

namespace vgen::train {
namespace {

using test::AllClose;
using Tensors = std::vector<torch::Tensor>;

/// body(ranks) of each rank, in their order. What it returns is detached.
std::vector<Tensors> on_ranks(int64_t size, const std::function<Tensors(nn::BatchRanks*)>& body) {
  std::vector<Tensors> results(static_cast<size_t>(size));
  test::run_ranks(size, [&](std::unique_ptr<dist::Group> group) {
    GroupRanks ranks(*group);
    Tensors result = body(&ranks);
    for (torch::Tensor& tensor : result) tensor = tensor.detach();
    results[static_cast<size_t>(group->rank())] = std::move(result);
    group->barrier();
  });
  return results;
}

/// Rank after rank to the order of the whole batch.
torch::Tensor interleaved(const Tensors& shares) { return torch::stack(shares, 1).flatten(0, 1); }

TEST_CASE("batch ranks: shares make the whole and the other way round", "[train][dist]") {
  const torch::Tensor whole_BC = torch::randn({6, 5});
  const auto there_and_back = [&](nn::BatchRanks* ranks) -> Tensors {
    const torch::Tensor share_BC = nn::own_share(ranks, whole_BC);
    return {share_BC, nn::whole_batch(ranks, share_BC)};
  };
  for (const Tensors& result : on_ranks(3, there_and_back)) {
    CHECK(result[0].sizes() == torch::IntArrayRef{2, 5});
    CHECK(result[1].equal(whole_BC));
  }
  CHECK(nn::whole_batch(nullptr, whole_BC).is_same(whole_BC));
  CHECK(nn::own_share(nullptr, whole_BC).is_same(whole_BC));
  CHECK(nn::mean_over_ranks(nullptr, whole_BC).is_same(whole_BC));
  CHECK(nn::num_ranks(nullptr) == 1);
}

TEST_CASE("batch ranks: batch norm is that of the whole batch", "[train][dist]") {
  torch::manual_seed(5);
  // Far from zero, where a variance by way of squares would lose its digits.
  const torch::Tensor whole_BCHW = torch::randn({6, 5, 4, 3}) + 30;
  const torch::Tensor wanted_BCHW = torch::randn({6, 5, 4, 3});
  const torch::Tensor weight_C = torch::rand({5}) + 0.5, bias_C = torch::randn({5});
  // Result, gradients of input, weight and bias, running averages.
  const auto run = [&](nn::BatchRanks* ranks, bool is_libtorch) -> Tensors {
    nn::BatchNorm norm(5);
    {
      const torch::NoGradGuard no_grad;
      norm->weight.copy_(weight_C);
      norm->bias.copy_(bias_C);
    }
    norm->set_ranks(is_libtorch ? nullptr : ranks);
    const torch::Tensor x = nn::own_share(ranks, whole_BCHW).clone().requires_grad_();
    torch::Tensor y;
    for (int i = 0; i < 2; ++i) y = norm(x);  // twice, for the averages
    (100 * (y * nn::own_share(ranks, wanted_BCHW)).square().mean()).backward();
    return {y,
            x.grad(),
            norm->weight.grad(),
            norm->bias.grad(),
            norm->running_mean,
            norm->running_var,
            norm->num_batches_tracked};
  };
  const Tensors expected = run(nullptr, /*is_libtorch=*/true);
  for (const int64_t size : {2, 3}) {
    INFO(size << " ranks");
    const auto results =
        on_ranks(size, [&](nn::BatchRanks* ranks) { return run(ranks, /*is_libtorch=*/false); });
    Tensors results_of_y, gradients_of_x;
    torch::Tensor weight_sum = torch::zeros({5}), bias_sum = torch::zeros({5});
    for (const Tensors& result : results) {
      results_of_y.push_back(result[0]);
      gradients_of_x.push_back(result[1]);
      weight_sum += result[2];
      bias_sum += result[3];
      CHECK_THAT(result[4], AllClose(expected[4].detach(), test::kFloat32));
      CHECK_THAT(result[5], AllClose(expected[5].detach(), test::kFloat32));
      CHECK(result[6].equal(expected[6]));
    }
    // Each rank has the gradient of the sum of all losses, the whole is their mean.
    const test::Tolerance rounding{2e-5, 2e-5};
    CHECK_THAT(interleaved(results_of_y), AllClose(expected[0].detach(), rounding));
    CHECK_THAT(interleaved(gradients_of_x) / size, AllClose(expected[1], rounding));
    // The mean's last bit, times the sum of the gradients.
    CHECK_THAT(weight_sum / size, AllClose(expected[2], {.absolute = 5e-4, .relative = 2e-5}));
    CHECK_THAT(bias_sum / size, AllClose(expected[3], rounding));
  }
}

TEST_CASE("batch ranks: batch norm in eval mode asks nobody", "[train][dist]") {
  const torch::Tensor x_BCHW = torch::randn({2, 5, 4, 3});
  on_ranks(2, [&](nn::BatchRanks* ranks) -> Tensors {
    nn::BatchNorm norm(5);
    norm->set_ranks(ranks);
    norm->eval();
    return ranks->rank() == 0 ? Tensors{norm(x_BCHW)} : Tensors{};
  });
}

TEST_CASE("batch ranks: the entropy loss is that of all rows", "[train][dist]") {
  torch::manual_seed(6);
  const torch::Tensor whole_NV = 0.1 * torch::rand({12, 7});
  const auto run = [&](nn::BatchRanks* ranks) -> Tensors {
    const torch::Tensor x_NV = nn::own_share(ranks, whole_NV).clone().requires_grad_();
    const torch::Tensor loss = tokenizer::entropy_loss(x_NV, ranks);
    loss.backward();
    return {loss, x_NV.grad()};
  };
  const Tensors expected = run(nullptr);
  const auto results = on_ranks(3, run);
  torch::Tensor loss = torch::zeros({});
  Tensors gradients;
  for (const Tensors& result : results) {
    loss += result[0];
    gradients.push_back(result[1]);
  }
  CHECK((loss / 3).item<double>() == Approx(expected[0].item<double>()).epsilon(1e-5));
  CHECK_THAT(interleaved(gradients) / 3, AllClose(expected[1], {1e-5, 1e-4}));
}

TEST_CASE("batch ranks: quantizers count what all ranks use", "[train][dist]") {
  torch::manual_seed(7);
  const torch::Tensor whole_BDhw = torch::randn({6, 4, 4, 4});
  const tokenizer::QuantizerConfig config{.codebook_size = 50, .codebook_embed_dim = 4};
  const tokenizer::MultiScaleQuantizerConfig scales_config{
      .codebook_size = 50, .z_channels = 4, .patch_nums = {1, 2, 4}};
  const tokenizer::VectorQuantizer quantizer(config);
  const tokenizer::MultiScaleQuantizer scales(scales_config);
  const auto copy_weights = [](const torch::nn::Module& from, torch::nn::Module& to) {
    const torch::NoGradGuard no_grad;
    const auto values = from.parameters();
    auto targets = to.parameters();
    for (size_t i = 0; i < targets.size(); ++i) targets[i].copy_(values[i]);
  };
  const auto run = [&](nn::BatchRanks* ranks) -> Tensors {
    tokenizer::VectorQuantizer own(config);
    tokenizer::MultiScaleQuantizer own_scales(scales_config);
    copy_weights(*quantizer, *own);
    copy_weights(*scales, *own_scales);
    own->set_ranks(ranks);
    own_scales->set_ranks(ranks);
    const torch::Tensor share_BDhw = nn::own_share(ranks, whole_BDhw);
    const auto usage = own(share_BDhw).losses.codebook_usage;
    const auto output = own_scales(share_BDhw);
    return {usage,        own->named_buffers()["codebook_used"], output.hits_KV, output.error_K,
            output.power, own_scales->ema_vocab_hit_KV()};
  };
  const Tensors expected = run(nullptr);
  CHECK(expected[0].item<double>() > 0.1);
  for (const Tensors& result : on_ranks(3, run)) {
    CHECK(result[0].equal(expected[0]));
    CHECK(result[1].equal(expected[1]));  // in the order of the whole batch
    CHECK(result[2].equal(expected[2]));
    CHECK_THAT(result[3], AllClose(expected[3], test::kFloat32));
    CHECK_THAT(result[4], AllClose(expected[4], test::kFloat32));
    CHECK(result[5].equal(expected[5]));
  }
}

}  // namespace
}  // namespace vgen::train
