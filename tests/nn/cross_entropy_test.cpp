// Cross entropy with autograd against LibTorch's.

#include "vgen/nn/cross_entropy.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/torch_support.h"
#include "vgen/tensor/autocast.h"

namespace vgen::nn {
namespace {

namespace F = torch::nn::functional;

torch::Tensor plain(const torch::Tensor& logits, const torch::Tensor& target, double smoothing) {
  return F::cross_entropy(
             logits.flatten(0, -2), target.flatten(),
             F::CrossEntropyFuncOptions().reduction(torch::kNone).label_smoothing(smoothing))
      .view_as(target);
}

TEST_CASE("cross entropy: weighted means have the same gradient", "[nn]") {
  torch::manual_seed(0);
  const auto target = torch::randint(19, {2, 5}, torch::kLong), weight = torch::rand({5});
  for (const double smoothing : {0.0, 0.2}) {
    for (const auto dtype : {torch::kFloat32, torch::kBFloat16, torch::kFloat64}) {
      INFO("smoothing " << smoothing << ", " << c10::toString(dtype));
      const auto logits = (torch::randn({2, 5, 19}) * 3).to(dtype).requires_grad_();
      const auto wide = logits.detach().to(torch::kFloat64).requires_grad_();
      const auto expected = plain(wide, target, smoothing);
      const auto loss = cross_entropy(logits, target, smoothing);
      CHECK(loss.scalar_type() == torch::kFloat32);
      CHECK_THAT(loss.to(torch::kFloat64), test::AllClose(expected, test::kFloat32));
      const auto gradient = torch::autograd::grad({(loss * weight).sum(1).mean()}, {logits})[0];
      CHECK(gradient.scalar_type() == dtype);
      const auto wanted = torch::autograd::grad({(expected * weight).sum(1).mean()}, {wide})[0];
      CHECK_THAT(gradient.to(torch::kFloat64),
                 test::AllClose(wanted, {1e-6, dtype == torch::kBFloat16 ? 0x1p-8 : 1e-5}));
    }
  }
}

TEST_CASE("cross entropy: label smoothing mixes the target with all classes", "[nn]") {
  torch::manual_seed(3);
  const auto logits = torch::randn({2, 3, 5});
  const auto target = torch::randint(5, {2, 3}, torch::kLong);
  const auto log_p = torch::log_softmax(logits, -1);
  const auto of_target = -log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1);
  CHECK_THAT(cross_entropy(logits, target, 0.1),
             test::AllClose(0.9 * of_target - 0.1 * log_p.mean(-1), test::kFloat32));
}

TEST_CASE("cross entropy: scores of rows", "[nn]") {
  torch::manual_seed(1);
  const auto target = torch::randint(4, {3, 50}, torch::kLong);
  for (const auto dtype : {torch::kFloat32, torch::kFloat64}) {
    const auto logits = torch::randn({3, 50, 4}, dtype).requires_grad_();
    const RowScores scores = score_rows(logits, target, 0.1);
    CHECK_THAT(scores.loss.to(dtype), test::AllClose(plain(logits, target, 0.1), test::kFloat32));
    CHECK_THAT(scores.plain_loss.to(dtype),
               test::AllClose(plain(logits, target, 0), test::kFloat32));
    CHECK(torch::equal(scores.is_right, logits.argmax(-1).eq(target).to(torch::kFloat32)));
    CHECK(scores.loss.requires_grad());
    CHECK_FALSE(scores.plain_loss.requires_grad());
    CHECK_FALSE(scores.is_right.requires_grad());
    CHECK_THAT(
        torch::autograd::grad({scores.loss.sum()}, {logits})[0],
        test::AllClose(torch::autograd::grad({plain(logits, target, 0.1).sum()}, {logits})[0],
                       test::kFloat32));
  }
}

TEST_CASE("cross entropy: the same under autocast", "[nn]") {
  torch::manual_seed(2);
  const auto logits = torch::randn({6, 30}).to(torch::kBFloat16);
  const auto target = torch::randint(30, {6}, torch::kLong);
  const auto expected = cross_entropy(logits, target);
  const Autocast autocast(torch::kCPU, torch::kBFloat16);
  CHECK(torch::equal(cross_entropy(logits, target), expected));
}

}  // namespace
}  // namespace vgen::nn
