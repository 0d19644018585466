// Convolution and its gradients against LibTorch's direct ones, for every instruction set.

#include "vgen/kernels/winograd.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/count_memory.h"
#include "support/torch_support.h"

namespace vgen::kernels {
namespace {

using test::AllClose;

constexpr auto kLast = torch::MemoryFormat::ChannelsLast;
const CpuIsa kAllIsas[] = {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512};

struct Case {
  int64_t batch, in, out, height, width;
};
/// Whole and partial tiles, vectors, panels, blocks of tiles; one pixel; few tiles of many
/// channels.
const Case kCases[] = {{1, 3, 5, 1, 1},     {2, 19, 21, 9, 14},  {1, 64, 3, 8, 8},
                       {1, 3, 64, 7, 30},   {1, 33, 64, 34, 26}, {2, 72, 81, 6, 11},
                       {1, 128, 64, 16, 16}};

torch::Tensor plain(torch::Tensor x, const torch::Tensor& weight, const torch::Tensor& bias,
                    bool is_upsampled) {
  if (is_upsampled) x = at::upsample_nearest2d(x, {2 * x.size(2), 2 * x.size(3)});
  return at::conv2d(x, weight, bias, 1, 1);
}

/// Of results around 1: the transforms round about ten times as much as a direct sum does.
constexpr double kRounding = 2e-5;

TEST_CASE("winograd: equals the direct convolution, odd sizes, upsampled or not", "[kernels]") {
  torch::manual_seed(0);
  for (const CpuIsa isa : kAllIsas) {
    for (const Case& c : kCases) {
      for (const bool is_upsampled : {false, true}) {
        INFO(cpu_isa_name(isa) << " " << c.in << "->" << c.out << " " << c.height << "x" << c.width
                               << " upsampled " << is_upsampled);
        const auto x = torch::randn({c.batch, c.in, c.height, c.width}).contiguous(kLast);
        const auto weight = torch::randn({c.out, c.in, 3, 3}) / std::sqrt(9.0 * c.in);
        const auto bias = torch::randn({c.out});
        const auto expected = plain(x.to(torch::kFloat64), weight.to(torch::kFloat64),
                                    bias.to(torch::kFloat64), is_upsampled);
        const WinogradOptions options{.is_upsampled = is_upsampled, .isa = isa};
        const auto y = winograd_conv(x, weight, bias, {}, options);
        REQUIRE(y.is_contiguous(kLast));
        CHECK((y - expected).abs().max().item<double>() < kRounding);
        const auto residual = torch::randn_like(y);
        const auto sum = winograd_conv(x, weight, {}, residual, options);
        const auto no_bias = expected - bias.view({1, -1, 1, 1});
        CHECK((sum - no_bias - residual).abs().max().item<double>() < kRounding);
      }
    }
  }
}

TEST_CASE("winograd: bf16 is read exactly and rounded once", "[kernels]") {
  torch::manual_seed(1);
  for (const CpuIsa isa : kAllIsas) {
    const auto x = torch::randn({1, 24, 10, 9}).to(torch::kBFloat16).contiguous(kLast);
    const auto weight = torch::randn({40, 24, 3, 3}) / 15, bias = torch::randn({40});
    const auto y = winograd_conv(x, weight, bias, {}, {.isa = isa});
    const auto wide = winograd_conv(x.to(torch::kFloat32), weight, bias, {}, {.isa = isa});
    CHECK(y.scalar_type() == torch::kBFloat16);
    CHECK(y.equal(wide.to(torch::kBFloat16)));
  }
}

TEST_CASE("winograd: gradients equal autograd's", "[kernels]") {
  torch::manual_seed(2);
  for (const CpuIsa isa : kAllIsas) {
    for (const Case& c : kCases) {
      for (const bool is_upsampled : {false, true}) {
        INFO(cpu_isa_name(isa) << " " << c.in << "->" << c.out << " " << c.height << "x" << c.width
                               << " upsampled " << is_upsampled);
        const auto x = torch::randn({c.batch, c.in, c.height, c.width}).contiguous(kLast);
        const auto weight = torch::randn({c.out, c.in, 3, 3}) / std::sqrt(9.0 * c.in);
        const auto x_leaf = x.to(torch::kFloat64).requires_grad_();
        const auto weight_leaf = weight.to(torch::kFloat64).requires_grad_();
        const auto y = plain(x_leaf, weight_leaf, {}, is_upsampled);
        const auto dy = torch::randn(y.sizes()).contiguous(kLast);
        y.backward(dy.to(torch::kFloat64));
        const auto dw = winograd_weight_gradient(x, dy, {.is_upsampled = is_upsampled, .isa = isa});
        const double size = weight_leaf.grad().abs().max().item<double>();
        CHECK((dw - weight_leaf.grad()).abs().max().item<double>() < 4e-6 * size + 1e-6);
        auto dx = winograd_conv(dy, weight, {}, {}, {.is_flipped = true, .isa = isa});
        if (is_upsampled) {
          dx = at::upsample_nearest2d_backward(dx, {2 * c.height, 2 * c.width}, x.sizes());
        }
        const double dx_size = x_leaf.grad().abs().max().item<double>();
        CHECK((dx - x_leaf.grad()).abs().max().item<double>() < 4e-6 * dx_size + 1e-6);
      }
    }
  }
}

TEST_CASE("winograd: the number of threads changes no bit", "[kernels]") {
  torch::manual_seed(3);
  const int threads = at::get_num_threads();
  const int64_t channels = GENERATE(32, 160);  // of 160 the weights are larger than the tiles
  const auto x = torch::randn({2, channels, 21, 25}).contiguous(kLast);
  const auto weight = torch::randn({192, channels, 3, 3});
  std::vector<torch::Tensor> results, gradients;
  for (const int count : {1, 2, 3}) {
    at::set_num_threads(count);
    results.push_back(winograd_conv(x, weight, {}, {}));
    gradients.push_back(winograd_weight_gradient(x, results[0]));
  }
  at::set_num_threads(threads);
  for (size_t i : {1, 2}) {
    CHECK(results[i].equal(results[0]));
    CHECK(gradients[i].equal(gradients[0]));
  }
}

TEST_CASE("winograd: an image alone is what it is among others", "[kernels]") {
  // Alone its tiles are fewer than the weights, among others they are more.
  torch::manual_seed(4);
  for (const CpuIsa isa : kAllIsas) {
    const auto x = torch::randn({9, 64, 14, 18}).contiguous(kLast);
    const auto weight = torch::randn({72, 64, 3, 3}), bias = torch::randn({72});
    const auto all = winograd_conv(x, weight, bias, {}, {.isa = isa});
    const auto alone = winograd_conv(x.narrow(0, 4, 1), weight, bias, {}, {.isa = isa});
    CHECK(alone.equal(all.narrow(0, 4, 1)));
  }
}

TEST_CASE("winograd: few tiles never see the transformed weights whole", "[kernels]") {
  constexpr int64_t kChannels = 256;
  const int threads = at::get_num_threads();
  at::set_num_threads(2);
  const auto x = torch::randn({1, kChannels, 16, 16}).contiguous(kLast);
  const auto weight = torch::randn({kChannels, kChannels, 3, 3});
  const test::MemoryCount memory;
  winograd_conv(x, weight, {}, {});
  CHECK(memory.peak() < 36 * kChannels * kChannels * 4 / 2);
  CHECK(memory.now() == 0);
  at::set_num_threads(threads);
}

TEST_CASE("winograd: what it does not take is said before", "[kernels]") {
  CHECK(is_winograd_input(torch::zeros({1, 4, 2, 2}).contiguous(kLast)));
  CHECK_FALSE(is_winograd_input(torch::zeros({1, 4, 2, 2})));
  CHECK_FALSE(is_winograd_input(torch::zeros({1, 4, 2, 2}, torch::kFloat64).contiguous(kLast)));
  CHECK_FALSE(is_winograd_input(torch::zeros({0, 4, 2, 2}).contiguous(kLast)));
  CHECK_FALSE(is_winograd_input(torch::zeros({4, 2, 2})));
}

}  // namespace
}  // namespace vgen::kernels
