// Heads of unit length and their gradients against LibTorch's operators in float64.

#include "vgen/kernels/unit_heads.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/torch_support.h"

namespace vgen::kernels {
namespace {

const CpuIsa kAllIsas[] = {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512};

torch::Tensor unit(const torch::Tensor& x) {
  namespace F = torch::nn::functional;
  return F::normalize(x, F::NormalizeFuncOptions().dim(-1).eps(1e-12));
}

TEST_CASE("unit heads: values and gradients equal the plain formula", "[kernels]") {
  for (const CpuIsa isa : kAllIsas) {
    for (const int64_t head_dim : {1, 6, 16, 64, 72}) {
      INFO(cpu_isa_name(isa) << ", heads of " << head_dim);
      torch::manual_seed(head_dim);
      const auto qkv = torch::randn({2, 19, 3, 5, head_dim}), scale = torch::rand({5}) * 4 + 0.5;
      auto x = qkv.to(torch::kFloat64).requires_grad_();
      const auto s = scale.to(torch::kFloat64).requires_grad_();
      const auto parts = x.unbind(2);
      const auto query = unit(parts[0]) * s.unsqueeze(1), key = unit(parts[1]);
      const auto result = unit_heads(qkv, scale, isa);
      CHECK_THAT(result.query_BLHD, test::AllClose(query, test::kFloat32));
      CHECK_THAT(result.key_BLHD, test::AllClose(key, test::kFloat32));
      CHECK(torch::equal(result.value_BLHD, qkv.unbind(2)[2]));
      const auto d = torch::randn({3, 2, 19, 5, head_dim}).unbind(0);
      const auto wanted = torch::autograd::grad(
          {query, key, parts[2]}, {x, s},
          {d[0].to(torch::kFloat64), d[1].to(torch::kFloat64), d[2].to(torch::kFloat64)});
      const auto found = unit_heads_gradient(qkv, scale, result.rnorm_N2H, d[0], d[1], d[2], isa);
      // One element alone always has unit length: its gradient is what rounding leaves of zero.
      const double bound = head_dim > 1 ? 5e-5 : 5e-4;
      CHECK_THAT(found.qkv_BL3HD, test::AllClose(wanted[0], {bound, 5e-5}));
      CHECK_THAT(found.scale_H, test::AllClose(wanted[1], {5e-5, 5e-5}));
    }
  }
}

TEST_CASE("unit heads: bf16 is computed in float32 and rounded once", "[kernels]") {
  torch::manual_seed(1);
  const auto floats = [](const torch::Tensor& x) { return x.to(torch::kFloat32); };
  for (const CpuIsa isa : kAllIsas) {
    const auto qkv = torch::randn({2, 5, 3, 4, 36}).to(torch::kBFloat16);
    const auto scale = torch::rand({4}) + 1;
    const auto found = unit_heads(qkv, scale, isa), wide = unit_heads(floats(qkv), scale, isa);
    CHECK(torch::equal(found.query_BLHD, wide.query_BLHD.to(torch::kBFloat16)));
    CHECK(torch::equal(found.key_BLHD, wide.key_BLHD.to(torch::kBFloat16)));
    const auto d = torch::randn({3, 2, 5, 4, 36}).to(torch::kBFloat16).unbind(0);
    const auto gradient = unit_heads_gradient(qkv, scale, found.rnorm_N2H, d[0], d[1], d[2], isa);
    const auto wide_gradient = unit_heads_gradient(floats(qkv), scale, wide.rnorm_N2H, floats(d[0]),
                                                   floats(d[1]), floats(d[2]), isa);
    CHECK(torch::equal(gradient.qkv_BL3HD, wide_gradient.qkv_BL3HD.to(torch::kBFloat16)));
  }
}

TEST_CASE("unit heads: a head of zeros stays one, and its gradient is finite", "[kernels]") {
  auto qkv = torch::randn({1, 2, 3, 2, 8});
  qkv[0][0][0][1] = 0;
  const auto result = unit_heads(qkv, torch::ones({2}));
  CHECK(result.query_BLHD[0][0][1].abs().max().item<float>() == 0);
  const auto d = torch::ones({1, 2, 2, 8});
  const auto found = unit_heads_gradient(qkv, torch::ones({2}), result.rnorm_N2H, d, d, d);
  CHECK(found.qkv_BL3HD.isfinite().all().item<bool>());
}

}  // namespace
}  // namespace vgen::kernels
