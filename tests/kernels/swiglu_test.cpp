// SwiGLU's gate and its gradients against LibTorch's operators in float64.

#include "vgen/kernels/swiglu.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/torch_support.h"

namespace vgen::kernels {
namespace {

const CpuIsa kAllIsas[] = {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512};

TEST_CASE("swiglu: value and gradients equal the plain formula", "[kernels]") {
  torch::manual_seed(0);
  for (const CpuIsa isa : kAllIsas) {
    for (const int64_t columns : {0, 1, 3, 17, 100, 40000}) {
      INFO(cpu_isa_name(isa) << ", " << columns << " columns");
      const auto a = torch::randn({3, columns}) * 4, b = torch::randn({3, columns});
      const auto dy = torch::randn({3, columns});
      const auto a_leaf = a.to(torch::kFloat64).requires_grad_();
      const auto b_leaf = b.to(torch::kFloat64).requires_grad_();
      const auto y = at::silu(a_leaf) * b_leaf;
      const auto wanted = torch::autograd::grad({y}, {a_leaf, b_leaf}, {dy.to(torch::kFloat64)});
      CHECK_THAT(swiglu(a, b, isa).to(torch::kFloat64), test::AllClose(y.detach(), test::kFloat32));
      const auto gradients = swiglu_gradient(a, b, dy, isa);
      CHECK_THAT(gradients.a.to(torch::kFloat64), test::AllClose(wanted[0], test::kFloat32));
      CHECK_THAT(gradients.b.to(torch::kFloat64), test::AllClose(wanted[1], test::kFloat32));
    }
  }
}

TEST_CASE("swiglu: bf16 is computed in float32 and rounded once", "[kernels]") {
  torch::manual_seed(1);
  for (const CpuIsa isa : kAllIsas) {
    const auto a = (torch::randn({7, 53}) * 4).to(torch::kBFloat16);
    const auto b = torch::randn({7, 53}).to(torch::kBFloat16);
    const auto dy = torch::randn({7, 53}).to(torch::kBFloat16);
    const auto wide = [](const torch::Tensor& x) { return x.to(torch::kFloat32); };
    CHECK(torch::equal(swiglu(a, b, isa), swiglu(wide(a), wide(b), isa).to(torch::kBFloat16)));
    const auto gradients = swiglu_gradient(a, b, dy, isa);
    const auto wide_gradients = swiglu_gradient(wide(a), wide(b), wide(dy), isa);
    CHECK(torch::equal(gradients.a, wide_gradients.a.to(torch::kBFloat16)));
    CHECK(torch::equal(gradients.b, wide_gradients.b.to(torch::kBFloat16)));
  }
}

TEST_CASE("swiglu: other strides, gates far from zero, any number of threads", "[kernels]") {
  torch::manual_seed(2);
  const auto a = torch::linspace(-200, 200, 30000).view({300, 100}).t();
  const auto b = torch::randn({100, 600}).slice(1, 0, 600, 2);
  const auto expected = at::silu(a.to(torch::kFloat64)) * b.to(torch::kFloat64);
  const int before = at::get_num_threads();
  for (const int threads : {1, 3}) {
    at::set_num_threads(threads);
    CHECK_THAT(swiglu(a, b).to(torch::kFloat64), test::AllClose(expected, test::kFloat32));
    const auto gradients = swiglu_gradient(a, b, torch::ones({1}).expand({100, 300}));
    CHECK(gradients.a.isfinite().all().item<bool>());
    CHECK_THAT(gradients.b.to(torch::kFloat64),
               test::AllClose(at::silu(a.to(torch::kFloat64)), test::kFloat32));
  }
  at::set_num_threads(before);
}

}  // namespace
}  // namespace vgen::kernels
