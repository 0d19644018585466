// Rotary positions and their gradient against complex numbers in float64.

#include "vgen/kernels/rotary.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/torch_support.h"

namespace vgen::kernels {
namespace {

const CpuIsa kAllIsas[] = {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512};

struct Case {
  int64_t batch, length, n_head, n_kv_head, head_dim;
};
const Case kCases[] = {{2, 5, 3, 3, 4}, {1, 3, 4, 2, 12}, {2, 7, 2, 1, 64},
                       {1, 1, 1, 1, 2}, {0, 4, 2, 2, 8},  {3, 50, 6, 2, 40}};

torch::Tensor random_rope(int64_t length, int64_t head_dim) {
  const auto angle = torch::randn({length, head_dim / 2}) * 3;
  return torch::stack({angle.cos(), angle.sin()}, -1);
}

/// The first heads times cos + i sin, or its conjugate.
torch::Tensor turned(const torch::Tensor& x_BSGD, const torch::Tensor& rope_SP2, int64_t num_turned,
                     bool is_inverse) {
  const auto wide = x_BSGD.to(torch::kFloat64);
  const auto pairs =
      torch::view_as_complex(wide.slice(2, 0, num_turned).unflatten(-1, {-1, 2}).contiguous());
  auto factor = torch::view_as_complex(rope_SP2.to(torch::kFloat64)).unsqueeze(1);
  if (is_inverse) factor = factor.conj();
  return torch::cat({torch::view_as_real(pairs * factor).flatten(-2), wide.slice(2, num_turned)},
                    2);
}

TEST_CASE("rotary: heads turn forward, gradients backward", "[kernels]") {
  torch::manual_seed(0);
  for (const CpuIsa isa : kAllIsas) {
    for (const Case& c : kCases) {
      INFO(cpu_isa_name(isa) << ", heads " << c.n_head << ", " << c.n_kv_head << " of "
                             << c.head_dim);
      const int64_t num_turned = c.n_head + c.n_kv_head;
      const auto x = torch::randn({c.batch, c.length, num_turned + c.n_kv_head, c.head_dim});
      const auto rope = random_rope(c.length, c.head_dim);
      CHECK_THAT(rotate_heads(x, rope, num_turned, isa).to(torch::kFloat64),
                 test::AllClose(turned(x, rope, num_turned, false), test::kFloat32));
      const auto parts =
          x.transpose(1, 2).split_with_sizes({c.n_head, c.n_kv_head, c.n_kv_head}, 1);
      const auto expected = turned(x, rope, num_turned, true);
      // as views of one tensor, as attention returns them, and each head on its own
      CHECK_THAT(
          rotate_heads_gradient({parts[0], parts[1], parts[2]}, rope, isa).to(torch::kFloat64),
          test::AllClose(expected, test::kFloat32));
      const HeadGradients packed{parts[0].contiguous(), parts[1].contiguous(),
                                 parts[2].transpose(2, 3).contiguous().transpose(2, 3)};
      CHECK_THAT(rotate_heads_gradient(packed, rope, isa).to(torch::kFloat64),
                 test::AllClose(expected, test::kFloat32));
    }
  }
}

TEST_CASE("rotary: bf16 is computed in float32 and rounded once", "[kernels]") {
  torch::manual_seed(1);
  for (const CpuIsa isa : kAllIsas) {
    const auto x = torch::randn({2, 9, 6, 20}).to(torch::kBFloat16);
    const auto rope = random_rope(9, 20);
    CHECK(torch::equal(rotate_heads(x, rope, 4, isa),
                       rotate_heads(x.to(torch::kFloat32), rope, 4, isa).to(torch::kBFloat16)));
    const auto gradient_of = [&](torch::ScalarType dtype) {
      const auto parts = x.to(dtype).transpose(1, 2).split(2, 1);
      return rotate_heads_gradient({parts[0], parts[1], parts[2]}, rope, isa);
    };
    CHECK(torch::equal(gradient_of(torch::kBFloat16),
                       gradient_of(torch::kFloat32).to(torch::kBFloat16)));
  }
}

TEST_CASE("rotary: other strides, any number of threads", "[kernels]") {
  torch::manual_seed(2);
  const auto wide = torch::randn({40, 3, 8, 32});
  const auto x = wide.transpose(0, 1).slice(2, 1, 7);  // (3, 40, 6, 32)
  const auto rope = random_rope(60, 32).slice(0, 20);
  const auto expected = turned(x, rope, 4, false);
  const int before = at::get_num_threads();
  for (const int threads : {1, 2, 5}) {
    at::set_num_threads(threads);
    CHECK_THAT(rotate_heads(x, rope, 4).to(torch::kFloat64),
               test::AllClose(expected, test::kFloat32));
  }
  at::set_num_threads(before);
}

}  // namespace
}  // namespace vgen::kernels
