// Cross entropy and its gradient against LibTorch's in float64, for every instruction set.

#include "vgen/kernels/cross_entropy.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <limits>

#include "support/support.h"
#include "support/torch_support.h"

namespace vgen::kernels {
namespace {

namespace F = torch::nn::functional;

const CpuIsa kAllIsas[] = {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512};

torch::Tensor plain(const torch::Tensor& logits, const torch::Tensor& target, double smoothing) {
  return F::cross_entropy(
      logits, target,
      F::CrossEntropyFuncOptions().reduction(torch::kNone).label_smoothing(smoothing));
}

TEST_CASE("cross entropy: losses and gradients equal LibTorch's", "[kernels]") {
  torch::manual_seed(0);
  for (const CpuIsa isa : kAllIsas) {
    for (const int64_t columns : {1, 3, 17, 100, 512, 1500}) {
      for (const double smoothing : {0.0, 0.1}) {
        INFO(cpu_isa_name(isa) << ", " << columns << " columns, smoothing " << smoothing);
        // far from zero, and rising, so that later chunks have larger maxima
        const auto logits =
            torch::randn({9, columns}) * 5 + torch::linspace(30, 60, columns).unsqueeze(0);
        const auto target = torch::randint(columns, {9}, torch::kLong), dloss = torch::randn({9});
        const auto leaf = logits.to(torch::kFloat64).requires_grad_();
        const auto loss = plain(leaf, target, smoothing);
        const auto wanted = torch::autograd::grad({loss}, {leaf}, {dloss.to(torch::kFloat64)});
        const auto result = cross_entropy(logits, target, smoothing, isa);
        CHECK_THAT(result.loss_N.to(torch::kFloat64),
                   test::AllClose(loss.detach(), test::kFloat32));
        CHECK_THAT(result.plain_loss_N.to(torch::kFloat64),
                   test::AllClose(plain(leaf.detach(), target, 0), test::kFloat32));
        CHECK(torch::equal(result.is_right_N, logits.argmax(-1).eq(target).to(torch::kFloat32)));
        CHECK_THAT(cross_entropy_gradient(logits, target, result.log_sum_N, dloss, smoothing, isa)
                       .to(torch::kFloat64),
                   test::AllClose(wanted[0], test::kFloat32));
      }
    }
  }
}

TEST_CASE("cross entropy: bf16 is computed in float32", "[kernels]") {
  torch::manual_seed(1);
  for (const CpuIsa isa : kAllIsas) {
    const auto logits = (torch::randn({6, 77}) * 3).to(torch::kBFloat16);
    const auto wide = logits.to(torch::kFloat32);
    const auto target = torch::randint(77, {6}, torch::kLong), dloss = torch::randn({6});
    const auto result = cross_entropy(logits, target, 0.1, isa);
    CHECK(torch::equal(result.loss_N, cross_entropy(wide, target, 0.1, isa).loss_N));
    CHECK(torch::equal(cross_entropy_gradient(logits, target, result.log_sum_N, dloss, 0.1, isa),
                       cross_entropy_gradient(wide, target, result.log_sum_N, dloss, 0.1, isa)
                           .to(torch::kBFloat16)));
  }
}

TEST_CASE("cross entropy: the first of equals is the likeliest", "[kernels]") {
  for (const CpuIsa isa : kAllIsas) {
    auto logits = torch::zeros({1, 1400});
    const auto is_right = [&](int64_t target) {
      return cross_entropy(logits, torch::tensor({target}), 0, isa).is_right_N.item<float>() == 1;
    };
    CHECK(is_right(0));
    logits.index_put_({0, torch::tensor({700, 1399})}, 1.0F);
    CHECK(is_right(700));
    CHECK_FALSE(is_right(1399));
    logits.index_put_({0, 1399}, 2.0F);
    CHECK(is_right(1399));
  }
}

TEST_CASE("cross entropy: masked and broken logits", "[kernels]") {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const CpuIsa isa : kAllIsas) {
    auto logits = torch::zeros({3, 20});
    logits.slice(0, 0, 1).slice(1, 4).fill_(-kInfinity);
    logits.index_put_({1, 19}, std::numeric_limits<float>::quiet_NaN());
    const auto target = torch::tensor({1, 1, 1});
    const auto result = cross_entropy(logits, target, 0, isa);
    CHECK(result.loss_N[0].item<double>() == Approx(std::log(4.0)));
    CHECK(std::isnan(result.loss_N[1].item<float>()));  // and so the step is not taken
    CHECK(result.loss_N[2].item<double>() == Approx(std::log(20.0)));
    const auto gradient =
        cross_entropy_gradient(logits, target, result.log_sum_N, torch::ones({3}), 0, isa);
    CHECK(gradient[0].slice(0, 4).abs().max().item<double>() < 1e-30);
    CHECK(gradient[1].isnan().all().item<bool>());
    CHECK(gradient[2][1].item<double>() == Approx(0.05 - 1));
  }
}

TEST_CASE("cross entropy: no rows, other strides, any number of threads", "[kernels]") {
  torch::manual_seed(2);
  const auto no_target = torch::empty({0}, torch::kLong);
  const auto none = cross_entropy(torch::empty({0, 5}), no_target);
  CHECK(none.loss_N.numel() == 0);
  CHECK(cross_entropy_gradient(torch::empty({0, 5}), no_target, none.log_sum_N, none.loss_N)
            .sizes() == torch::IntArrayRef({0, 5}));

  const auto logits = torch::randn({1000, 64}).t();
  const auto target = torch::randint(1000, {64, 2}, torch::kLong).select(1, 1);
  const auto expected = plain(logits.to(torch::kFloat64), target, 0);
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const auto one = cross_entropy(logits, target);
  const auto gradient_of = [&] {
    return cross_entropy_gradient(logits, target, one.log_sum_N, torch::ones({64}));
  };
  const auto one_gradient = gradient_of();
  CHECK_THAT(one.loss_N.to(torch::kFloat64), test::AllClose(expected, test::kFloat32));
  for (const int threads : {2, 5}) {
    at::set_num_threads(threads);
    const auto several = cross_entropy(logits, target);
    CHECK(torch::equal(several.loss_N, one.loss_N));
    CHECK(torch::equal(several.log_sum_N, one.log_sum_N));
    CHECK(torch::equal(gradient_of(), one_gradient));
  }
  at::set_num_threads(before);
}

TEST_CASE("cross entropy: a target that is no class is refused", "[kernels]") {
  CHECK(test::error_of([] {
          cross_entropy(torch::zeros({2, 3}), torch::tensor({0, 3}));
        }) == "cross entropy: the target 3 of row 1 is no class, expected 0 to 2");
  CHECK(test::error_of([] {
          cross_entropy(torch::zeros({1, 3}), torch::tensor({-1}));
        }) == "cross entropy: the target -1 of row 0 is no class, expected 0 to 2");
}

}  // namespace
}  // namespace vgen::kernels
