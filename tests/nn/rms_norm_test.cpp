// RMSNorm with autograd against separate operators.

#include "vgen/nn/rms_norm.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/torch_support.h"
#include "vgen/tensor/autocast.h"

namespace vgen::nn {
namespace {

constexpr double kEps = 1e-5;

torch::Tensor plain(const torch::Tensor& x, const torch::Tensor& weight) {
  return x * (x.square().mean(-1, /*keepdim=*/true) + kEps).rsqrt() * weight;
}

TEST_CASE("rms norm: gradients reach x and the weight", "[nn]") {
  torch::manual_seed(0);
  // float64 is computed by separate operators.
  for (const auto dtype : {torch::kFloat32, torch::kFloat64}) {
    RmsNorm norm(24, kEps);
    norm->to(dtype);
    const auto weight = norm->parameters()[0];
    weight.detach().normal_();
    const auto x = torch::randn({2, 9, 24}, dtype).transpose(0, 1).requires_grad_();
    const auto y = norm(x);
    CHECK(y.scalar_type() == dtype);
    const auto dy = torch::randn_like(y);
    const auto actual = torch::autograd::grad({y}, {x, weight}, {dy});
    const auto expected = torch::autograd::grad({plain(x, weight)}, {x, weight}, {dy});
    CHECK_THAT(y, test::AllClose(plain(x, weight), test::kFloat32));
    CHECK_THAT(actual[0], test::AllClose(expected[0], test::kFloat32));
    CHECK_THAT(actual[1], test::AllClose(expected[1], test::kFloat32));
    // of a sum: the gradient is one number that is spread by strides of zero
    CHECK_THAT(torch::autograd::grad({norm(x).sum()}, {weight})[0],
               test::AllClose(torch::autograd::grad({plain(x, weight).sum()}, {weight})[0],
                              test::kFloat32));
  }
}

TEST_CASE("rms norm: the gradient is the slope", "[nn]") {
  torch::manual_seed(1);
  const auto x = torch::randn({4, 6}), weight = torch::randn({6}), along = torch::randn({4, 6});
  const auto value_at = [&](double step) {
    return rms_norm(x + step * along, weight, kEps).sin().sum().item<double>();
  };
  const auto leaf = x.clone().requires_grad_();
  const auto gradient =
      torch::autograd::grad({rms_norm(leaf, weight, kEps).sin().sum()}, {leaf})[0];
  const double slope = (value_at(1e-2) - value_at(-1e-2)) / 2e-2;
  CHECK((gradient * along).sum().item<double>() == Approx(slope).epsilon(2e-3));
}

TEST_CASE("rms norm: dtypes of the result", "[nn]") {
  const auto x = torch::randn({3, 8}), weight = torch::ones({8});
  const auto narrow = x.to(torch::kBFloat16), narrow_weight = weight.to(torch::kBFloat16);
  CHECK(rms_norm(x, weight, kEps).scalar_type() == torch::kFloat32);
  CHECK(rms_norm(narrow, weight, kEps).scalar_type() == torch::kFloat32);
  CHECK(rms_norm(x, narrow_weight, kEps).scalar_type() == torch::kFloat32);
  CHECK(rms_norm(narrow, narrow_weight, kEps).scalar_type() == torch::kBFloat16);
  for (const auto precision : {torch::kBFloat16, torch::kFloat16}) {
    const Autocast autocast(torch::kCPU, precision);
    for (const auto& input : {x, narrow, x.to(torch::kFloat64)}) {
      for (const auto& factor : {weight, narrow_weight}) {
        CHECK(rms_norm(input, factor, kEps).scalar_type() == precision);
      }
    }
  }
  // rounded once, as the product would
  const Autocast autocast(torch::kCPU, torch::kBFloat16);
  const auto y = rms_norm(x, weight, kEps);
  const Autocast off(torch::kCPU, torch::kFloat32);
  CHECK(torch::equal(y, rms_norm(x, weight, kEps).to(torch::kBFloat16)));
}

TEST_CASE("rms norm: without gradients", "[nn]") {
  torch::manual_seed(2);
  RmsNorm norm(8, kEps);
  const auto x = torch::randn({3, 8});
  const auto y = norm(x);
  CHECK(y.requires_grad());
  const torch::NoGradGuard no_grad;
  CHECK(torch::equal(norm(x), y));
  CHECK_FALSE(norm(x).requires_grad());
  const c10::InferenceMode inference;
  CHECK(torch::equal(norm(x + 0), y));
}

}  // namespace
}  // namespace vgen::nn
