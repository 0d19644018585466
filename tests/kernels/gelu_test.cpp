// GELU and its gradient against LibTorch's operator in float64.

#include "vgen/kernels/gelu.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/torch_support.h"

namespace vgen::kernels {
namespace {

const CpuIsa kAllIsas[] = {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512};

TEST_CASE("gelu: value and gradient equal the plain formula", "[kernels]") {
  torch::manual_seed(0);
  for (const CpuIsa isa : kAllIsas) {
    for (const int64_t columns : {0, 1, 17, 40000}) {
      INFO(cpu_isa_name(isa) << ", " << columns << " columns");
      const auto x = torch::randn({3, columns}) * 4, dy = torch::randn({3, columns});
      const auto leaf = x.to(torch::kFloat64).requires_grad_();
      const auto y = at::gelu(leaf, "tanh");
      const auto wanted = torch::autograd::grad({y}, {leaf}, {dy.to(torch::kFloat64)});
      CHECK_THAT(gelu(x, isa), test::AllClose(y, test::kFloat32));
      CHECK_THAT(gelu_gradient(x, dy, isa), test::AllClose(wanted[0], {1e-5, 1e-5}));
    }
  }
}

TEST_CASE("gelu: far from zero, and bf16 is rounded once", "[kernels]") {
  const auto x = torch::linspace(-300, 300, 10001);
  for (const CpuIsa isa : kAllIsas) {
    CHECK_THAT(gelu(x, isa), test::AllClose(at::gelu(x, "tanh"), {1e-5, 1e-5}));
    CHECK(gelu_gradient(x, torch::ones_like(x), isa).isfinite().all().item<bool>());
    const auto narrow = x.to(torch::kBFloat16);
    CHECK(torch::equal(gelu(narrow, isa),
                       gelu(narrow.to(torch::kFloat32), isa).to(torch::kBFloat16)));
  }
}

}  // namespace
}  // namespace vgen::kernels
