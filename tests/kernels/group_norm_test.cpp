// Group norm with SiLU and its gradients against LibTorch's in float64, for every instruction set.

#include "vgen/kernels/group_norm.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/torch_support.h"

namespace vgen::kernels {
namespace {

constexpr auto kLast = torch::MemoryFormat::ChannelsLast;
constexpr double kEps = 1e-6;
const CpuIsa kAllIsas[] = {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512};

struct Case {
  int64_t batch, channels, groups, height, width;
};
/// Whole and partial vectors; one pixel; several chunks of pixels.
const Case kCases[] = {{2, 32, 32, 5, 7},
                       {1, 96, 32, 3, 3},
                       {2, 14, 7, 6, 5},
                       {1, 64, 32, 1, 1},
                       {1, 128, 32, 31, 29}};

torch::Tensor plain(const torch::Tensor& x, int64_t groups, const torch::Tensor& weight,
                    const torch::Tensor& bias, bool has_silu) {
  const auto y = at::group_norm(x, groups, weight, bias, kEps);
  return has_silu ? at::silu(y) : y;
}

double worst(const torch::Tensor& a, const torch::Tensor& b) {
  return (a.to(torch::kFloat64) - b).abs().max().item<double>();
}

TEST_CASE("group norm: value and gradients equal the plain formula", "[kernels]") {
  torch::manual_seed(0);
  for (const CpuIsa isa : kAllIsas) {
    for (const Case& c : kCases) {
      for (const bool has_silu : {false, true}) {
        INFO(cpu_isa_name(isa) << " C " << c.channels << " " << c.height << "x" << c.width
                               << " silu " << has_silu);
        // a mean much larger than the deviation: sums of squares alone would lose the variance
        const auto x =
            (torch::randn({c.batch, c.channels, c.height, c.width}) + 30).contiguous(kLast);
        const auto weight = torch::randn({c.channels}), bias = torch::randn({c.channels});
        const auto x_leaf = x.to(torch::kFloat64).requires_grad_();
        const auto weight_leaf = weight.to(torch::kFloat64).requires_grad_();
        const auto bias_leaf = bias.to(torch::kFloat64).requires_grad_();
        const auto expected = plain(x_leaf, c.groups, weight_leaf, bias_leaf, has_silu);
        const auto dy = torch::randn(x.sizes()).contiguous(kLast);
        expected.backward(dy.to(torch::kFloat64));

        const auto stats = group_norm_stats(x, c.groups, kEps, isa);
        const GroupNormParameters parameters{weight, bias, has_silu, isa};
        const auto y = group_norm_apply(x, stats, parameters);
        const auto gradient = group_norm_gradient(x, dy, stats, parameters);
        const bool is_constant = c.channels / c.groups * c.height * c.width < 3;
        const double tolerance = is_constant ? 0.5 : 3e-5;  // 2 values: rstd is up to 1000
        CHECK(worst(y, expected) < tolerance);
        if (is_constant) continue;
        CHECK(worst(gradient.x_BCHW, x_leaf.grad()) < 1e-4);
        const double pixels = static_cast<double>(c.batch * c.height * c.width);
        CHECK(worst(gradient.weight_C, weight_leaf.grad()) < 2e-5 * pixels);
        CHECK(worst(gradient.bias_C, bias_leaf.grad()) < 2e-6 * pixels + 1e-5);
        CHECK(worst(channel_sums(dy, isa), dy.to(torch::kFloat64).sum({0, 2, 3})) <
              1e-6 * pixels + 1e-5);
      }
    }
  }
}

TEST_CASE("group norm: bf16 is computed in float32 and rounded once", "[kernels]") {
  torch::manual_seed(1);
  for (const CpuIsa isa : kAllIsas) {
    const auto x = (torch::randn({2, 64, 9, 5}) * 3).to(torch::kBFloat16).contiguous(kLast);
    const auto dy = torch::randn({2, 64, 9, 5}).to(torch::kBFloat16).contiguous(kLast);
    const auto wide = x.to(torch::kFloat32);
    const GroupNormParameters parameters{torch::randn({64}), torch::randn({64}), true, isa};
    const auto stats = group_norm_stats(x, 32, kEps, isa);
    CHECK(stats.mean_BG.equal(group_norm_stats(wide, 32, kEps, isa).mean_BG));
    CHECK(group_norm_apply(x, stats, parameters)
              .equal(group_norm_apply(wide, stats, parameters).to(torch::kBFloat16)));
    const auto gradient = group_norm_gradient(x, dy, stats, parameters);
    const auto wide_gradient = group_norm_gradient(wide, dy.to(torch::kFloat32), stats, parameters);
    CHECK(gradient.x_BCHW.equal(wide_gradient.x_BCHW.to(torch::kBFloat16)));
    CHECK(gradient.weight_C.equal(wide_gradient.weight_C));
  }
}

TEST_CASE("group norm: in place it is the same", "[kernels]") {
  torch::manual_seed(2);
  for (const CpuIsa isa : kAllIsas) {
    const auto x = torch::randn({2, 64, 9, 5}).contiguous(kLast);
    const auto stats = group_norm_stats(x, 32, kEps, isa);
    GroupNormParameters parameters{torch::randn({64}), torch::randn({64}), true, isa};
    const auto expected = group_norm_apply(x, stats, parameters);
    parameters.is_in_place = true;
    CHECK(group_norm_apply(x, stats, parameters).is_same(x));
    CHECK(x.equal(expected));
  }
}

TEST_CASE("group norm: silu is right far from zero", "[kernels]") {
  for (const CpuIsa isa : kAllIsas) {
    auto x = torch::cat({torch::linspace(-200, 200, 801), torch::tensor({-88.7f, 88.7f, 0.f})})
                 .view({1, 1, 1, -1})
                 .expand({1, 8, 1, -1})
                 .contiguous(kLast);
    const GroupNormStats identity{torch::zeros({1, 1}), torch::ones({1, 1})};
    const auto y = group_norm_apply(x, identity, {torch::ones({8}), torch::zeros({8}), true, isa});
    const auto expected = at::silu(x.to(torch::kFloat64));
    CHECK(((y - expected).abs() / (expected.abs() + 1e-30)).max().item<double>() < 1);
    CHECK(worst(y, expected) < 1e-4);
    const auto near = expected.abs() > 1e-3;
    CHECK(((y - expected).abs() / expected.abs()).masked_select(near).max().item<double>() < 5e-7);
    auto broken = x.clone();
    broken.index_put_({0, 0, 0, 3}, std::nanf(""));
    const auto out =
        group_norm_apply(broken, identity, {torch::ones({8}), torch::zeros({8}), true, isa});
    CHECK(out.isnan().sum().item<int64_t>() == 1);
  }
}

}  // namespace
}  // namespace vgen::kernels
