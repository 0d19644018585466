// Modulated norms, gated sums and their gradients against LibTorch's operators in float64.

#include "vgen/kernels/adaln.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/torch_support.h"

namespace vgen::kernels {
namespace {

const CpuIsa kAllIsas[] = {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512};
constexpr double kEps = 1e-6;

torch::Tensor wide(const torch::Tensor& x) { return x.to(torch::kFloat64); }

struct Case {
  torch::Tensor x_BLC, branch_BLC, scale_BC, shift_BC, dy_BLC;
};
/// More rows than are summed at once, rows far from zero.
Case make_case(int64_t columns, torch::ScalarType dtype = torch::kFloat32) {
  torch::manual_seed(columns);
  return {(torch::randn({2, 70, columns}) + 3).to(dtype), torch::randn({2, 70, columns}).to(dtype),
          torch::randn({2, columns}), torch::randn({2, columns}),
          torch::randn({2, 70, columns}).to(dtype)};
}

TEST_CASE("modulated norm: value and gradients equal the plain formula", "[kernels]") {
  for (const CpuIsa isa : kAllIsas) {
    for (const int64_t columns : {1, 3, 48, 100, 1024}) {
      INFO(cpu_isa_name(isa) << ", " << columns << " columns");
      const Case c = make_case(columns);
      const auto x = wide(c.x_BLC).requires_grad_(), scale = wide(c.scale_BC).requires_grad_();
      const auto shift = wide(c.shift_BC).requires_grad_();
      const auto y = torch::layer_norm(x, {columns}, {}, {}, kEps) * (1 + scale.unsqueeze(1)) +
                     shift.unsqueeze(1);
      const auto wanted = torch::autograd::grad({y}, {x, scale, shift}, {wide(c.dy_BLC)});
      const auto result =
          modulated_norm(c.x_BLC, c.scale_BC, c.shift_BC, kEps, torch::kFloat32, isa);
      CHECK_THAT(result.y_BLC, test::AllClose(y, {2e-5, 2e-5}));
      const auto found =
          modulated_norm_gradient(c.x_BLC, c.scale_BC, result.mean_N, result.rstd_N, c.dy_BLC, isa);
      // One column alone is always at its mean: its norm is zero, whatever it is.
      if (columns > 1) CHECK_THAT(found.x_BLC, test::AllClose(wanted[0], {5e-5, 5e-5}));
      CHECK_THAT(found.scale_BC, test::AllClose(wanted[1], {2e-4, 2e-5}));
      CHECK_THAT(found.shift_BC, test::AllClose(wanted[2], {5e-5, 1e-5}));
    }
  }
}

TEST_CASE("gated sum: value and gradients equal the plain formula", "[kernels]") {
  for (const CpuIsa isa : kAllIsas) {
    for (const int64_t columns : {1, 3, 48, 100, 1024}) {
      INFO(cpu_isa_name(isa) << ", " << columns << " columns");
      const Case c = make_case(columns);
      const auto branch = wide(c.branch_BLC).requires_grad_();
      const auto gate = wide(c.scale_BC).requires_grad_();
      const auto y = wide(c.x_BLC) + branch * gate.unsqueeze(1);
      const auto wanted = torch::autograd::grad({y}, {branch, gate}, {wide(c.dy_BLC)});
      CHECK_THAT(gated_sum(c.x_BLC, c.branch_BLC, c.scale_BC, isa),
                 test::AllClose(y, test::kFloat32));
      const auto found = gated_sum_gradient(c.branch_BLC, c.scale_BC, c.dy_BLC, isa);
      CHECK_THAT(found.branch_BLC, test::AllClose(wanted[0], test::kFloat32));
      CHECK_THAT(found.gate_BC, test::AllClose(wanted[1], {5e-5, 1e-5}));
    }
  }
}

TEST_CASE("modulated norm, gated sum: bf16 is computed in float32 and rounded once", "[kernels]") {
  const auto narrow = [](const torch::Tensor& x) { return x.to(torch::kBFloat16); };
  const auto floats = [](const torch::Tensor& x) { return x.to(torch::kFloat32); };
  for (const CpuIsa isa : kAllIsas) {
    INFO(cpu_isa_name(isa));
    const Case c = make_case(53, torch::kBFloat16);
    const auto y = modulated_norm(c.x_BLC, c.scale_BC, c.shift_BC, kEps, torch::kBFloat16, isa);
    const auto wide_y =
        modulated_norm(floats(c.x_BLC), c.scale_BC, c.shift_BC, kEps, torch::kFloat32, isa);
    CHECK(torch::equal(y.y_BLC, narrow(wide_y.y_BLC)));
    const auto gradient =
        modulated_norm_gradient(c.x_BLC, c.scale_BC, y.mean_N, y.rstd_N, c.dy_BLC, isa);
    const auto wide_gradient = modulated_norm_gradient(floats(c.x_BLC), c.scale_BC, wide_y.mean_N,
                                                       wide_y.rstd_N, floats(c.dy_BLC), isa);
    CHECK(torch::equal(gradient.x_BLC, narrow(wide_gradient.x_BLC)));
    CHECK(torch::equal(gradient.scale_BC, wide_gradient.scale_BC));

    CHECK(torch::equal(gated_sum(c.x_BLC, c.branch_BLC, c.scale_BC, isa),
                       narrow(gated_sum(floats(c.x_BLC), floats(c.branch_BLC), c.scale_BC, isa))));
    // A sum in float32 of a branch in bf16.
    CHECK(torch::equal(gated_sum(floats(c.x_BLC), c.branch_BLC, c.scale_BC, isa),
                       gated_sum(floats(c.x_BLC), floats(c.branch_BLC), c.scale_BC, isa)));
  }
}

TEST_CASE("modulated norm: sums of gradients do not depend on the number of threads", "[kernels]") {
  const Case c = make_case(100);
  const auto y = modulated_norm(c.x_BLC, c.scale_BC, c.shift_BC, kEps, torch::kFloat32);
  const int before = at::get_num_threads();
  std::vector<ModulatedNormGradients> results;
  for (const int threads : {1, 3}) {
    at::set_num_threads(threads);
    results.push_back(modulated_norm_gradient(c.x_BLC, c.scale_BC, y.mean_N, y.rstd_N, c.dy_BLC));
  }
  at::set_num_threads(before);
  CHECK(torch::equal(results[0].scale_BC, results[1].scale_BC));
  CHECK(torch::equal(results[0].shift_BC, results[1].shift_BC));
  CHECK(torch::equal(results[0].x_BLC, results[1].x_BLC));
}

}  // namespace
}  // namespace vgen::kernels
