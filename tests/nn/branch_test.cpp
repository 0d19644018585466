// Modulated norms, gated sums, heads of unit length and GELU: with autograd, in every dtype,
// against separate operators.

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/torch_support.h"
#include "vgen/nn/adaln.h"
#include "vgen/nn/gelu.h"
#include "vgen/nn/unit_heads.h"
#include "vgen/tensor/autocast.h"

namespace vgen::nn {
namespace {

using torch::autograd::grad;

/// float64 takes separate operators, float32 one pass.
constexpr torch::ScalarType kDtypes[] = {torch::kFloat32, torch::kFloat64};

TEST_CASE("modulated norm and gated sum: gradients reach every input", "[nn]") {
  torch::manual_seed(0);
  for (const auto dtype : kDtypes) {
    const auto x = torch::randn({2, 5, 12}, dtype).requires_grad_();
    const auto branch = torch::randn({5, 2, 12}, dtype).transpose(0, 1).requires_grad_();
    // As a block has them: parts of one tensor.
    const auto factors = torch::randn({2, 1, 3, 12}, dtype).requires_grad_();
    const auto parts = factors.unbind(2);
    const auto y = gated_sum(x, branch, parts[0]) + modulated_norm(x, parts[1], parts[2], 1e-6);
    const auto expected = x + branch * parts[0] +
                          torch::layer_norm(x, {12}, {}, {}, 1e-6) * (1 + parts[1]) + parts[2];
    CHECK(y.scalar_type() == dtype);
    CHECK_THAT(y, test::AllClose(expected, {1e-5, 1e-5}));
    const auto dy = torch::randn_like(expected);
    const auto found = grad({y}, {x, branch, factors}, {dy}, /*retain_graph=*/true);
    const auto wanted = grad({expected}, {x, branch, factors}, {dy});
    for (size_t i = 0; i < 3; ++i) CHECK_THAT(found[i], test::AllClose(wanted[i], {1e-5, 1e-5}));
  }
}

TEST_CASE("modulated norm: the dtype is autocast's, else that of x", "[nn]") {
  const auto x = torch::randn({2, 3, 8}), factor = torch::randn({2, 1, 8});
  CHECK(modulated_norm(x, factor, factor, 1e-6).scalar_type() == torch::kFloat32);
  CHECK(modulated_norm(x.to(torch::kBFloat16), factor, factor, 1e-6).scalar_type() ==
        torch::kBFloat16);
  const Autocast autocast(torch::kCPU, torch::kBFloat16);
  CHECK(modulated_norm(x, factor, factor, 1e-6).scalar_type() == torch::kBFloat16);
  CHECK(modulated_norm(x.to(torch::kFloat64), factor, factor, 1e-6).scalar_type() ==
        torch::kBFloat16);
}

TEST_CASE("unit heads and gelu: gradients reach every input", "[nn]") {
  torch::manual_seed(1);
  for (const auto dtype : kDtypes) {
    const auto qkv = torch::randn({2, 7, 3, 4, 10}, dtype).requires_grad_();
    const auto scale = (torch::rand({4}) + 1).requires_grad_();
    const Heads heads = unit_heads(qkv, scale);
    const auto plain = unit_heads(qkv.to(torch::kFloat64), scale);
    const auto sum_of = [](const Heads& h) {
      const auto mixed = h.query_BLHD * 2 + h.key_BLHD * h.value_BLHD;
      return nn::gelu(mixed.to(torch::kFloat32)).square().sum();
    };
    CHECK(heads.query_BLHD.scalar_type() == dtype);
    const torch::autograd::variable_list leaves = {qkv, scale};
    const auto found = grad({sum_of(heads)}, leaves), wanted = grad({sum_of(plain)}, leaves);
    CHECK_THAT(found[0], test::AllClose(wanted[0], {1e-4, 1e-4}));
    CHECK_THAT(found[1], test::AllClose(wanted[1], {1e-4, 1e-4}));
  }
}

TEST_CASE("modulated norm, gated sum, unit heads, gelu: a second derivative is refused", "[nn]") {
  const auto x = torch::randn({1, 2, 8}).requires_grad_(), factor = torch::randn({1, 1, 8});
  const auto qkv = torch::randn({1, 2, 3, 2, 4}).requires_grad_();
  const auto check = [](const torch::Tensor& y, const torch::Tensor& leaf, const char* name) {
    CHECK_THROWS_WITH(grad({y.sum()}, {leaf}, {}, std::nullopt, /*create_graph=*/true),
                      Catch::Contains(std::string(name) + " has no second derivative"));
  };
  check(modulated_norm(x, factor, factor, 1e-6), x, "modulated_norm");
  check(gated_sum(x, x, factor), x, "gated_sum");
  check(nn::gelu(x), x, "gelu");
  const Heads heads = unit_heads(qkv, torch::ones({2}));
  check(heads.query_BLHD + heads.key_BLHD + heads.value_BLHD, qkv, "unit_heads");
}

}  // namespace
}  // namespace vgen::nn
