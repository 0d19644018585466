// Dropout with its gradient and LibTorch's generator.

#include "vgen/nn/dropout.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

namespace vgen::nn {
namespace {

TEST_CASE("dropout: off, it returns its input", "[nn]") {
  const auto x = torch::randn({5, 7});
  CHECK(nn::dropout(x, 0.5, /*is_training=*/false).is_same(x));
  CHECK(nn::dropout(x, 0, /*is_training=*/true).is_same(x));
  CHECK(nn::dropout(x, 1, /*is_training=*/true).eq(0).all().item<bool>());
}

TEST_CASE("dropout: gradients pass where values do, and the seed repeats them", "[nn]") {
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16, torch::kFloat64}) {
    CAPTURE(c10::toString(dtype));
    const auto x = torch::ones({40, 50}, torch::dtype(dtype)).requires_grad_();
    torch::manual_seed(3);
    const auto first = nn::dropout(x, 0.25, true), second = nn::dropout(x, 0.25, true);
    CHECK_FALSE(torch::equal(first, second));
    torch::manual_seed(3);
    CHECK(torch::equal(nn::dropout(x, 0.25, true), first));
    const auto dx = torch::autograd::grad({first}, {x}, {torch::ones_like(x)})[0];
    CHECK(dx.scalar_type() == dtype);
    CHECK(torch::equal(dx, first));  // of ones, both are 0 or 4 / 3
    CHECK(first.max().item<double>() == Approx(4.0 / 3).epsilon(0.005));
  }
}

}  // namespace
}  // namespace vgen::nn
