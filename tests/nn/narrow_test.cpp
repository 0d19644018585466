// Products of narrow numbers, whatever the processor has, against float32.

#include "vgen/nn/narrow.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/torch_support.h"
#include "vgen/tensor/autocast.h"
#include "vgen/tensor/tf32.h"

namespace vgen::nn {
namespace {

/// Products of narrow numbers, rounded once: half a unit in the last place.
test::Tolerance rounding_of(c10::ScalarType dtype) {
  return dtype == c10::kBFloat16 ? test::Tolerance{2e-2, 1e-2} : test::Tolerance{2e-3, 2e-3};
}

TEST_CASE("linear: float32 is LibTorch's to the bit", "[nn]") {
  const auto x = torch::randn({3, 4, 6}), weight = torch::randn({5, 6}), bias = torch::randn({5});
  CHECK(torch::equal(nn::linear(x, weight, bias), at::linear(x, weight, bias)));
  CHECK(torch::equal(nn::linear(x, weight), at::linear(x, weight)));
}

/// Under autocast the result is narrow, and gradients are the weights'.
void check_linear_under_autocast(c10::Device device, c10::ScalarType dtype, bool has_bias,
                                 int64_t out_features) {
  CAPTURE(c10::toString(dtype), has_bias, out_features);
  torch::manual_seed(0);
  const auto values = [&](torch::IntArrayRef sizes) {
    // Of narrow numbers, so that only the result is rounded.
    return torch::randn(sizes).to(dtype).to(device, c10::kFloat);
  };
  // Other strides than the usual ones.
  const auto x_leaf = values({2, 6, 3}).transpose(1, 2).requires_grad_();
  const auto weight = values({out_features, 6}).requires_grad_();
  const auto bias = has_bias ? values({out_features}).requires_grad_() : torch::Tensor();
  const auto dy = values({2, 3, out_features});
  torch::Tensor y;
  {
    const Autocast autocast(device, dtype);
    y = nn::linear(x_leaf, weight, bias);
  }
  CHECK(y.scalar_type() == dtype);
  const auto expected = at::linear(x_leaf, weight, bias);
  CHECK_THAT(y.to(c10::kFloat), test::AllClose(expected, rounding_of(dtype)));
  std::vector<torch::Tensor> leaves{x_leaf, weight};
  if (has_bias) leaves.push_back(bias);
  const auto actual = torch::autograd::grad({y}, leaves, {dy.to(dtype)});
  const auto wanted = torch::autograd::grad({expected}, leaves, {dy});
  for (size_t i = 0; i < leaves.size(); ++i) {
    CHECK(actual[i].scalar_type() == c10::kFloat);
    CHECK_THAT(actual[i], test::AllClose(wanted[i], rounding_of(dtype)));
  }
}

TEST_CASE("linear: under autocast the result is narrow and gradients are the weights'", "[nn]") {
  const bool has_bias = GENERATE(false, true);
  for (const auto dtype : {c10::kBFloat16, c10::kHalf}) {
    check_linear_under_autocast(torch::kCPU, dtype, has_bias, 5);
  }
}

TEST_CASE("linear: the same on CUDA", "[nn][cuda]") {
  if (test::lacks_cuda()) return;
  allow_tf32(false);
  const bool has_bias = GENERATE(false, true);
  for (const auto dtype : {c10::kBFloat16, c10::kHalf}) {
    for (const int64_t out_features : {5, 16}) {
      check_linear_under_autocast(torch::kCUDA, dtype, has_bias, out_features);
    }
  }
}

TEST_CASE("linear: narrow weights need no autocast", "[nn]") {
  torch::manual_seed(1);
  const auto x = torch::randn({4, 6}).to(c10::kBFloat16);
  const auto weight = torch::randn({5, 6}).to(c10::kBFloat16).requires_grad_();
  const auto y = nn::linear(x, weight);
  CHECK(y.scalar_type() == c10::kBFloat16);
  const auto expected = at::linear(x.to(c10::kFloat), weight.to(c10::kFloat));
  CHECK_THAT(y.to(c10::kFloat), test::AllClose(expected, rounding_of(c10::kBFloat16)));
  y.sum().backward();
  CHECK(weight.grad().scalar_type() == c10::kBFloat16);
  CHECK_THROWS(nn::linear(x, weight.to(c10::kFloat)));  // as LibTorch's, on every processor
}

TEST_CASE("linear: where products are widened, float32 weights are not rounded", "[nn]") {
  if (has_fast_products(c10::kBFloat16)) {
    WARN("this processor multiplies bfloat16 fast: widened products are not tested");
    return;
  }
  torch::manual_seed(3);
  const auto x = torch::randn({40, 30}).to(c10::kBFloat16);
  const auto weight = torch::randn({20, 30}).requires_grad_();
  const auto bias = torch::randn({20}).requires_grad_();
  const auto dy = torch::randn({40, 20}).to(c10::kBFloat16);
  torch::Tensor y;
  {
    const Autocast autocast(c10::kCPU, c10::kBFloat16);
    y = nn::linear(x, weight, bias);
  }
  const auto expected = at::linear(x.to(c10::kFloat), weight, bias);
  CHECK(torch::equal(y, expected.to(c10::kBFloat16)));
  const auto actual = torch::autograd::grad({y}, {weight, bias}, {dy});
  const auto wanted = torch::autograd::grad({expected}, {weight, bias}, {dy.to(c10::kFloat)});
  for (size_t i = 0; i < 2; ++i) CHECK_THAT(actual[i], test::AllClose(wanted[i], test::kFloat32));
}

TEST_CASE("attention: narrow inputs, as in float32", "[nn]") {
  torch::manual_seed(2);
  struct Case {
    const char* name;
    AttentionOptions options;
    int64_t num_kv_heads = 4;
  };
  const auto mask = torch::randn({1, 1, 6, 6});
  const auto is_seen = torch::ones({6, 6}, torch::kBool).tril();
  for (const Case& c :
       {Case{"plain", {}}, Case{"causal", {.is_causal = true}},
        Case{"scaled sum", {.mask = mask, .scale = 0.7}}, Case{"bool", {.mask = is_seen}},
        Case{"groups", {.is_causal = true, .has_groups = true}, 2}}) {
    CAPTURE(c.name);
    const auto draw = [](int64_t heads) {
      return torch::randn({2, heads, 6, 8}).to(c10::kBFloat16).to(c10::kFloat).requires_grad_();
    };
    const std::vector<torch::Tensor> leaves{draw(4), draw(c.num_kv_heads), draw(c.num_kv_heads)};
    torch::Tensor out;
    {
      const Autocast autocast(c10::kCPU, c10::kBFloat16);
      out = attention(leaves[0], leaves[1], leaves[2], c.options);
    }
    CHECK(out.scalar_type() == c10::kBFloat16);
    const auto expected = attention(leaves[0], leaves[1], leaves[2], c.options);
    CHECK(expected.scalar_type() == c10::kFloat);
    CHECK_THAT(out.to(c10::kFloat), test::AllClose(expected, rounding_of(c10::kBFloat16)));
    const auto d_out = torch::randn_like(expected).to(c10::kBFloat16);
    const auto actual = torch::autograd::grad({out}, leaves, {d_out});
    const auto wanted = torch::autograd::grad({expected}, leaves, {d_out.to(c10::kFloat)});
    for (size_t i = 0; i < 3; ++i) {
      CHECK_THAT(actual[i], test::AllClose(wanted[i], rounding_of(c10::kBFloat16)));
    }
  }
}

}  // namespace
}  // namespace vgen::nn
