// SwiGLU's gate with autograd against separate operators.

#include "vgen/nn/swiglu.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/torch_support.h"

namespace vgen::nn {
namespace {

TEST_CASE("swiglu: gradients reach both factors", "[nn]") {
  torch::manual_seed(0);
  for (const auto dtype : {torch::kFloat32, torch::kFloat64}) {
    const auto a = torch::randn({5, 2, 7}, dtype).transpose(0, 1).requires_grad_();
    const auto b = torch::randn({2, 5, 7}, dtype).requires_grad_();
    const auto y = swiglu(a, b), expected = torch::silu(a) * b;
    CHECK(y.scalar_type() == dtype);
    CHECK_THAT(y, test::AllClose(expected, test::kFloat32));
    const auto dy = torch::randn_like(expected);
    const auto actual = torch::autograd::grad({y}, {a, b}, {dy});
    const auto wanted = torch::autograd::grad({expected}, {a, b}, {dy});
    CHECK_THAT(actual[0], test::AllClose(wanted[0], test::kFloat32));
    CHECK_THAT(actual[1], test::AllClose(wanted[1], test::kFloat32));
  }
}

TEST_CASE("swiglu: a second derivative is refused", "[nn]") {
  const auto a = torch::randn({4}).requires_grad_(), b = torch::randn({4});
  CHECK_THROWS_WITH(torch::autograd::grad({swiglu(a, b).sum()}, {a}, {}, std::nullopt,
                                          /*create_graph=*/true),
                    Catch::Contains("swiglu has no second derivative"));
}

}  // namespace
}  // namespace vgen::nn
