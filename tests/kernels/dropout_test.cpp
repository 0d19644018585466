// Dropout against Philox one element at a time.

#include "vgen/kernels/dropout.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <cmath>

#include "support/torch_support.h"
#include "vgen/core/random.h"

namespace vgen::kernels {
namespace {

const CpuIsa kAllIsas[] = {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512};

torch::Tensor plain_dropout(const torch::Tensor& x, double p, uint64_t key) {
  auto kept = torch::empty({x.numel()});
  auto* const factors = kept.mutable_data_ptr<float>();
  for (int64_t i = 0; i < x.numel(); ++i) {
    const auto counter = static_cast<uint64_t>(i / 64 * 16 + i % 16);
    const auto words =
        philox4x32({static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0},
                   {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)});
    factors[i] = words[i / 16 % 4] >= std::floor(std::ldexp(p, 32)) ? 1.0f : 0.0f;
  }
  return (x.to(torch::kFloat32) * kept.view(x.sizes()) * (1 / (1 - p))).to(x.scalar_type());
}

TEST_CASE("dropout: each element is dropped by its own random word", "[kernels]") {
  torch::manual_seed(0);
  constexpr uint64_t kKey = 0xfedcba9876543210;
  for (const CpuIsa isa : kAllIsas) {
    for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
      for (const int64_t count : {0, 1, 15, 63, 64, 65, 5000}) {
        INFO(cpu_isa_name(isa) << ", " << count << " of " << c10::toString(dtype));
        const auto x = torch::randn({count}).to(dtype);
        for (const double p : {0.1, 0.75}) {
          CHECK(torch::equal(keyed_dropout(x, p, kKey, isa), plain_dropout(x, p, kKey)));
        }
      }
    }
  }
}

TEST_CASE("dropout: the same on any number of threads", "[kernels]") {
  torch::manual_seed(1);
  const auto x = torch::randn({100'003});  // of several tasks
  const auto expected = plain_dropout(x, 0.3, 11);
  const int num_threads = at::get_num_threads();
  for (const int threads : {1, 3}) {
    at::set_num_threads(threads);
    CHECK(torch::equal(keyed_dropout(x, 0.3, 11), expected));
  }
  at::set_num_threads(num_threads);
}

TEST_CASE("dropout: the share, the order of axes and the key", "[kernels]") {
  // The share that is dropped, and elements of other layouts in the order of their axes.
  const auto x = torch::ones({1 << 20});
  const double share = keyed_dropout(x, 0.25, 7).eq(0).to(torch::kFloat64).mean().item<double>();
  CHECK(std::abs(share - 0.25) < 0.0025);  // six standard deviations
  const auto turned = torch::randn({30, 50}).t();
  CHECK(torch::equal(keyed_dropout(turned, 0.5, 3), keyed_dropout(turned.contiguous(), 0.5, 3)));
  CHECK_FALSE(torch::equal(keyed_dropout(x, 0.5, 3), keyed_dropout(x, 0.5, 4)));
}

}  // namespace
}  // namespace vgen::kernels
