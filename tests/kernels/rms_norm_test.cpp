// RMSNorm and its gradients against the formula in float64, for every instruction set.

#include "vgen/kernels/rms_norm.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/torch_support.h"

namespace vgen::kernels {
namespace {

constexpr double kEps = 1e-5;
const CpuIsa kAllIsas[] = {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512};
constexpr test::Tolerance kRoundedOnce{1e-6, 0x1p-8};  ///< bfloat16 has 8 significant bits

struct Expected {
  torch::Tensor y, x_gradient, weight_gradient;
};
Expected expected(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& dy) {
  const auto x_leaf = x.detach().to(torch::kFloat64).requires_grad_();
  const auto weight_leaf = weight.detach().to(torch::kFloat64).requires_grad_();
  const auto y = x_leaf * (x_leaf.square().mean(-1, /*keepdim=*/true) + kEps).rsqrt() * weight_leaf;
  const auto gradients =
      torch::autograd::grad({y}, {x_leaf, weight_leaf}, {dy.to(torch::kFloat64)});
  return {y.detach(), gradients[0], gradients[1]};
}

TEST_CASE("rms norm: value and gradients equal the plain formula", "[kernels]") {
  torch::manual_seed(0);
  for (const CpuIsa isa : kAllIsas) {
    for (const int64_t columns : {1, 3, 16, 17, 100, 768}) {
      for (const int64_t rows : {1, 5, 200}) {
        INFO(cpu_isa_name(isa) << ", " << rows << " rows of " << columns);
        const auto x = torch::randn({rows, columns}) * 3, weight = torch::randn({columns});
        const auto dy = torch::randn({rows, columns});
        const Expected wanted = expected(x, weight, dy);
        const auto result = rms_norm(x, weight, kEps, torch::kFloat32, isa);
        const auto gradients = rms_norm_gradient(x, weight, result.rstd_N, dy, isa);
        CHECK_THAT(result.y.to(torch::kFloat64), test::AllClose(wanted.y, test::kFloat32));
        // of one column next to nothing is left of much
        const double rstd = result.rstd_N.max().item<double>();
        CHECK_THAT(gradients.x.to(torch::kFloat64),
                   test::AllClose(wanted.x_gradient, {1e-6 + 2e-6 * rstd, 1e-5}));
        CHECK_THAT(gradients.weight_C.to(torch::kFloat64),
                   test::AllClose(wanted.weight_gradient, {5e-5, 1e-5}));
      }
    }
  }
}

TEST_CASE("rms norm: bf16 with a weight of either dtype", "[kernels]") {
  torch::manual_seed(1);
  for (const CpuIsa isa : kAllIsas) {
    for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
      INFO(cpu_isa_name(isa) << ", weight " << c10::toString(dtype));
      const auto x = torch::randn({70, 37}).to(torch::kBFloat16);
      const auto weight = torch::randn({37}).to(dtype), dy = torch::randn({70, 37}).to(dtype);
      const auto result = rms_norm(x, weight, kEps, dtype, isa);
      CHECK(result.y.scalar_type() == dtype);
      // quirk: rounded before the weight, and in bfloat16 behind it once more
      const auto wide = x.to(torch::kFloat32);
      const auto normed =
          (wide * (wide.square().mean(-1, true) + kEps).rsqrt()).to(torch::kBFloat16);
      CHECK_THAT(result.y.to(torch::kFloat32),
                 test::AllClose((normed * weight).to(torch::kFloat32), kRoundedOnce));
      const auto gradients = rms_norm_gradient(x, weight, result.rstd_N, dy, isa);
      CHECK(gradients.x.scalar_type() == torch::kBFloat16);
      CHECK(gradients.weight_C.scalar_type() == dtype);
      const Expected wanted = expected(x, weight, dy);
      CHECK_THAT(gradients.x.to(torch::kFloat64), test::AllClose(wanted.x_gradient, kRoundedOnce));
      CHECK_THAT(gradients.weight_C.to(torch::kFloat64),
                 test::AllClose(wanted.weight_gradient, {0.1, 0x1p-7}));
    }
  }
}

TEST_CASE("rms norm: no rows, other strides, any number of threads", "[kernels]") {
  torch::manual_seed(2);
  const auto weight = torch::randn({48});
  const auto none = rms_norm(torch::empty({2, 0, 48}), weight, kEps, torch::kFloat32);
  CHECK(none.y.sizes() == torch::IntArrayRef({2, 0, 48}));
  const auto no_gradient = rms_norm_gradient(torch::empty({2, 0, 48}), weight, none.rstd_N, none.y);
  CHECK(torch::equal(no_gradient.weight_C, torch::zeros({48})));

  const auto x = torch::randn({300, 48, 2}).select(2, 1), dy = torch::randn({48, 300}).t();
  const int before = at::get_num_threads();
  const auto result = rms_norm(x, weight, kEps, torch::kFloat32);
  const auto gradients = rms_norm_gradient(x, weight, result.rstd_N, dy);
  CHECK(torch::equal(result.y, rms_norm(x.contiguous(), weight, kEps, torch::kFloat32).y));
  for (const int threads : {1, 2, 5}) {
    at::set_num_threads(threads);
    CHECK(torch::equal(rms_norm(x, weight, kEps, torch::kFloat32).y, result.y));
    const auto again = rms_norm_gradient(x, weight, result.rstd_N, dy);
    CHECK(torch::equal(again.x, gradients.x));
    CHECK(torch::equal(again.weight_C, gradients.weight_C));
  }
  at::set_num_threads(before);
}

TEST_CASE("rms norm: what is computed here", "[kernels]") {
  const auto x = torch::zeros({2, 4}), weight = torch::zeros({4});
  CHECK(is_rms_norm_input(x, weight));
  CHECK(is_rms_norm_input(x.to(torch::kBFloat16), weight));
  CHECK(is_rms_norm_input(x, weight.to(torch::kBFloat16)));
  CHECK_FALSE(is_rms_norm_input(x.to(torch::kFloat64), weight));
  CHECK_FALSE(is_rms_norm_input(x, torch::zeros({3})));
  CHECK_FALSE(is_rms_norm_input(torch::zeros({2, 0}), torch::zeros({0})));
}

}  // namespace
}  // namespace vgen::kernels
