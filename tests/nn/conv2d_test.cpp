// The convolution with its extras against plain LibTorch operators, and what it keeps of weights.

#include "vgen/nn/conv2d.h"

#include <catch2/catch.hpp>
#include <thread>

#include "support/torch_support.h"
#include "vgen/tensor/tf32.h"

namespace vgen::nn {
namespace {

constexpr auto kLast = torch::MemoryFormat::ChannelsLast;

struct Case {
  Conv2dOptions options;
  int64_t height, width;
  bool is_upsampled = false;
};
std::vector<Case> cases() {
  Conv2dOptions down = conv3x3(32, 32);
  down.stride = 2;
  down.is_padded_at_end = true;
  Conv2dOptions patch = conv3x3(32, 40);
  patch.kernel_size = 4;
  patch.stride = 2;
  patch.use_bias = false;
  return {{conv3x3(32, 48), 9, 11},
          {conv1x1(32, 16), 5, 6},
          {down, 8, 6},
          {down, 7, 9},
          {conv3x3(32, 32), 6, 5, true},
          {patch, 10, 12},
          {conv3x3(256, 256), 3, 3}};  // few pixels for many channels: oneDNN
}

torch::Tensor plain(const Conv2d& conv, const GroupNorm& norm, torch::Tensor x,
                    const torch::Tensor& residual, const Case& c) {
  if (norm) x = at::silu(at::group_norm(x, norm->groups(), norm->weight, norm->bias, norm->eps()));
  if (c.is_upsampled) x = at::upsample_nearest2d(x, {2 * x.size(2), 2 * x.size(3)});
  if (c.options.is_padded_at_end) x = at::constant_pad_nd(x, {0, 1, 0, 1});
  x = at::conv2d(x, conv->weight, conv->bias, c.options.stride,
                 c.options.is_padded_at_end ? 0 : c.options.padding);
  return residual.defined() ? x + residual : x;
}

/// What has a gradient. norm and residual come together or not at all.
std::vector<torch::Tensor> leaves_of(const torch::Tensor& x, const Conv2d& conv,
                                     const GroupNorm& norm, const torch::Tensor& residual) {
  std::vector<torch::Tensor> leaves = {x, conv->weight};
  if (conv->bias.defined()) leaves.push_back(conv->bias);
  if (norm) leaves.insert(leaves.end(), {norm->weight, norm->bias, residual});
  return leaves;
}

TEST_CASE("conv2d: values and gradients equal those of separate operators", "[nn]") {
  torch::manual_seed(0);
  for (const Case& c : cases()) {
    for (const bool has_extras : {false, true}) {
      for (const auto format : {torch::MemoryFormat::Contiguous, kLast}) {
        INFO(c.options.in_channels << "->" << c.options.out_channels << " kernel "
                                   << c.options.kernel_size << " " << c.height << "x" << c.width
                                   << " extras " << has_extras);
        Conv2d conv(c.options);
        GroupNorm norm = nullptr;
        if (has_extras) {
          norm = GroupNorm(c.options.in_channels);
          const torch::NoGradGuard no_grad;
          norm->weight.normal_();
          norm->bias.normal_();
        }
        const auto x = torch::randn({2, c.options.in_channels, c.height, c.width})
                           .contiguous(format)
                           .requires_grad_();
        torch::Tensor residual;
        if (has_extras) {
          const torch::NoGradGuard no_grad;
          residual = torch::randn_like(plain(conv, norm, x, {}, c));
        }
        if (residual.defined()) residual.requires_grad_();
        const auto leaves = leaves_of(x, conv, norm, residual);
        const auto expected = plain(conv, norm, x, residual, c);
        const auto dy = torch::randn_like(expected);
        const auto wanted = torch::autograd::grad({expected}, leaves, {dy});
        const auto y = conv->forward_with(x, {.norm_silu = norm ? norm.get() : nullptr,
                                              .is_upsampled = c.is_upsampled,
                                              .residual_BOHW = residual});
        CHECK_THAT(y, test::AllClose(expected, test::kParity));
        const auto actual = torch::autograd::grad({y}, leaves, {dy});
        for (size_t i = 0; i < leaves.size(); ++i) {
          CAPTURE(i);
          CHECK(((actual[i] - wanted[i]).norm() / wanted[i].norm()).item<double>() < 1e-5);
        }
        const torch::NoGradGuard no_grad;
        CHECK_THAT(conv->forward_with(x, {.norm_silu = norm ? norm.get() : nullptr,
                                          .is_upsampled = c.is_upsampled,
                                          .residual_BOHW = residual}),
                   test::AllClose(expected, test::kParity));
      }
    }
  }
}

TEST_CASE("conv2d: a spent input changes no value, and is kept where gradients need it", "[nn]") {
  torch::manual_seed(3);
  Conv2d conv(conv3x3(32, 32));
  GroupNorm norm(32);
  const auto x = torch::randn({2, 32, 9, 12}).contiguous(kLast);
  const auto copy = x.clone();
  const Conv2dExtras spent{.norm_silu = norm.get(), .is_input_spent = true};
  const auto expected = conv->forward_with(x, {.norm_silu = norm.get()}).detach();
  CHECK(conv->forward_with(x, spent).detach().equal(expected));
  CHECK(x.equal(copy));
  const torch::NoGradGuard no_grad;
  CHECK(conv->forward_with(x, spent).equal(expected));
  CHECK_FALSE(x.equal(copy));
}

TEST_CASE("conv2d: bf16 values and gradients stay near float32's", "[nn]") {
  torch::manual_seed(1);
  for (const Case& c : cases()) {
    INFO(c.options.in_channels << "->" << c.options.out_channels << " kernel "
                               << c.options.kernel_size);
    Conv2d conv(c.options);
    GroupNorm norm(c.options.in_channels);
    const auto x = torch::randn({2, c.options.in_channels, c.height, c.width}).requires_grad_();
    const std::vector<torch::Tensor> leaves = {x, conv->weight, norm->weight};
    const auto expected = plain(conv, norm, x, {}, c);
    const auto dy = torch::randn_like(expected);
    const auto wanted = torch::autograd::grad({expected}, leaves, {dy});
    const auto y = conv->forward_with(x.to(torch::kBFloat16),
                                      {.norm_silu = norm.get(), .is_upsampled = c.is_upsampled});
    CHECK(y.scalar_type() == torch::kBFloat16);
    CHECK(((y - expected).norm() / expected.norm()).item<double>() < 0.01);
    const auto actual = torch::autograd::grad({y}, leaves, {dy.to(torch::kBFloat16)});
    for (size_t i = 0; i < leaves.size(); ++i) {
      CAPTURE(i);
      CHECK(actual[i].scalar_type() == torch::kFloat32);
      CHECK(((actual[i] - wanted[i]).norm() / wanted[i].norm()).item<double>() < 0.02);
    }
  }
}

TEST_CASE("conv2d: every way of changing the weight is seen", "[nn]") {
  torch::manual_seed(2);
  const torch::NoGradGuard no_grad;
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
    Conv2d conv(conv3x3(32, 32));
    conv->eval();  // only then is anything kept
    const auto x = torch::randn({1, 32, 8, 8}).to(dtype).contiguous(kLast);
    const auto check = [&](const char* what) {
      INFO(what);
      const auto expected = at::conv2d(x.to(torch::kFloat32), conv->weight, conv->bias, 1, 1);
      CHECK(((conv(x) - expected).norm() / expected.norm()).item<double>() < 0.01);
    };
    check("first");
    conv->weight.mul_(2);
    check("in place");
    conv->weight.detach().copy_(torch::randn_like(conv->weight));
    check("copied into a detached view");
    conv->weight.set_data(torch::randn_like(conv->weight));
    check("other storage");
    torch::Tensor averages = torch::randn_like(conv->weight);
    at::_foreach_lerp_({conv->weight}, {averages}, 0.5);
    check("a list of tensors");
    auto moment = torch::zeros_like(conv->weight), square = torch::zeros_like(conv->weight);
    at::_fused_adam_({conv->weight}, {torch::randn_like(conv->weight)}, {moment}, {square}, {},
                     {torch::ones({})}, 0.5, 0.9, 0.95, 0, 1e-8, false, false);
    conv->weight.unsafeGetTensorImpl()->bump_version();  // as train::Optimizer does
    check("fused Adam");
  }
}

TEST_CASE("conv2d: tells of each weight that a kept copy stands in for", "[nn]") {
  torch::manual_seed(4);
  const torch::NoGradGuard no_grad;
  Conv2d conv(conv3x3(32, 32));
  std::vector<torch::Tensor> told;
  conv->on_weight_kept([&](const torch::Tensor& weight) { told.push_back(weight.clone()); });
  const auto x = torch::randn({1, 32, 8, 8}).to(torch::kHalf);
  conv(x);
  CHECK(told.empty());  // it is trained
  conv->eval();
  conv(x.to(torch::kFloat32));
  CHECK(told.empty());
  const auto y = conv(x);
  REQUIRE(told.size() == 1);
  CHECK(told[0].equal(conv->weight));
  CHECK(conv(x).equal(y));
  CHECK(told.size() == 1);
  conv->weight.mul_(2);
  conv(x);
  REQUIRE(told.size() == 2);
  CHECK(told[1].equal(conv->weight));
}

TEST_CASE("conv2d: threads share the kept weights", "[nn]") {
  torch::manual_seed(3);
  Conv2d conv(conv3x3(32, 32));
  conv->weight.set_requires_grad(false);
  const auto x = torch::randn({1, 32, 8, 8}).to(torch::kBFloat16).contiguous(kLast);
  std::vector<torch::Tensor> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&] {
      const torch::NoGradGuard no_grad;
      result = conv(x);
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) CHECK(result.equal(results[0]));
}

TEST_CASE("conv2d, group norm: a second derivative is refused", "[nn]") {
  const auto x = torch::randn({1, 32, 4, 4}).contiguous(kLast).requires_grad_();
  Conv2d conv(conv3x3(32, 32));
  GroupNorm norm(32);
  const auto check = [&](const torch::Tensor& y, const char* name) {
    CHECK_THROWS_WITH(
        torch::autograd::grad({y.sum()}, {x}, {}, std::nullopt, /*create_graph=*/true),
        Catch::Contains(std::string(name) + " has no second derivative"));
  };
  check(conv(x), "conv2d");
  check(norm(x), "group_norm");
}

TEST_CASE("conv2d: narrow on CUDA is near float32, and channels-last", "[nn][cuda]") {
  if (test::lacks_cuda()) return;
  allow_tf32(false);
  torch::manual_seed(3);
  for (const Case& c : cases()) {
    for (const bool has_extras : {false, true}) {
      INFO(c.options.in_channels << "->" << c.options.out_channels << " kernel "
                                 << c.options.kernel_size << " " << c.height << "x" << c.width
                                 << " extras " << has_extras);
      Conv2d conv(c.options);
      conv->to(torch::kCUDA);
      GroupNorm norm = nullptr;
      if (has_extras) {
        norm = GroupNorm(c.options.in_channels);
        norm->to(torch::kCUDA);
      }
      const auto x = torch::randn({2, c.options.in_channels, c.height, c.width}, torch::kCUDA)
                         .requires_grad_();
      torch::Tensor residual;
      if (has_extras) residual = torch::randn_like(plain(conv, norm, x, {}, c)).requires_grad_();
      const auto leaves = leaves_of(x, conv, norm, residual);
      const auto expected = plain(conv, norm, x, residual, c);
      const auto dy = torch::randn_like(expected);
      const auto wanted = torch::autograd::grad({expected}, leaves, {dy});
      const auto narrow = [](const torch::Tensor& t) {
        return t.defined() ? t.to(torch::kBFloat16) : t;
      };
      const auto y = conv->forward_with(narrow(x), {.norm_silu = norm ? norm.get() : nullptr,
                                                    .is_upsampled = c.is_upsampled,
                                                    .residual_BOHW = narrow(residual)});
      CHECK(y.scalar_type() == torch::kBFloat16);
      CHECK(y.is_contiguous(kLast));
      const auto found = torch::autograd::grad({y}, leaves, {narrow(dy)});
      const auto error = [](const torch::Tensor& a, const torch::Tensor& b) {
        return ((a.to(torch::kFloat32) - b).norm() / b.norm()).item<double>();
      };
      CHECK(error(y, expected) < 0.01);
      for (size_t k = 0; k < leaves.size(); ++k) {
        INFO("gradient " << k);
        CHECK(error(found[k], wanted[k]) < 0.02);
      }
    }
  }
}

}  // namespace
}  // namespace vgen::nn
