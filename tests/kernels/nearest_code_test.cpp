// Nearest code against the plain formula in float64, for every instruction set.

#include "vgen/kernels/nearest_code.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/support.h"
#include "support/torch_support.h"

namespace vgen::kernels {
namespace {

const CpuIsa kAllIsas[] = {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512};

TEST_CASE("nearest code: equals the plain formula, any sizes", "[kernels]") {
  torch::manual_seed(0);
  for (const CpuIsa isa : kAllIsas) {
    for (const auto& [rows, dim, codes] :
         {std::tuple{1, 1, 1}, {7, 8, 33}, {130, 8, 1000}, {5, 3, 16}, {33, 32, 517}}) {
      INFO(cpu_isa_name(isa) << " N " << rows << " D " << dim << " V " << codes);
      const auto z = torch::randn({rows, dim}), codebook = torch::randn({codes, dim});
      const auto distance = torch::cdist(z.to(torch::kFloat64), codebook.to(torch::kFloat64), 2,
                                         /*compute_mode=*/2);
      const auto index = nearest_code(z, codebook, isa);
      REQUIRE(index.sizes() == torch::IntArrayRef{rows});
      const auto found = distance.gather(1, index.unsqueeze(1)).squeeze(1);
      CHECK((found - std::get<0>(distance.min(1))).max().item<double>() < 1e-6);
    }
  }
}

TEST_CASE("nearest code: the first of equal codes, 0 for NaN", "[kernels]") {
  torch::manual_seed(1);
  for (const CpuIsa isa : kAllIsas) {
    const auto half = torch::randn({50, 8});
    const auto codebook = torch::cat({half, half, half.flip(0)});  // each code three times
    CHECK(nearest_code(half, codebook, isa).equal(torch::arange(50)));
    CHECK(nearest_code(half.flip(0), codebook, isa).equal(torch::arange(50).flip(0)));
    auto z = half.clone();
    z[3][2] = std::nanf("");
    const auto index = nearest_code(z, codebook, isa);
    CHECK(index[3].item<int64_t>() == 0);
    CHECK(index[4].item<int64_t>() == 4);
  }
  CHECK(nearest_code(torch::zeros({0, 8}), torch::zeros({4, 8})).numel() == 0);
}

TEST_CASE("nearest code: wrong shapes and dtypes are told", "[kernels]") {
  CHECK(test::error_of([] {
          nearest_code(torch::zeros({2, 3}), torch::zeros({4, 8}));
        }) ==
        "nearest code: rows [2, 3] and codebook [4, 8], expected (N, D) and (V, D) with V > 0");
  CHECK(test::error_of([] {
          nearest_code(torch::zeros({2, 8}, torch::kFloat64), torch::zeros({4, 8}));
        }) == "nearest code: rows of Double and codes of Float, expected Float");
}

}  // namespace
}  // namespace vgen::kernels
