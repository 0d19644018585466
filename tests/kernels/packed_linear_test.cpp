#include "vgen/kernels/packed_linear.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/support.h"
#include "support/torch_support.h"

namespace vgen {

using kernels::CpuIsa;
using kernels::Epilogue;
using kernels::PackedLinear;
using kernels::Storage;

namespace {

constexpr CpuIsa kLevels[] = {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAmx};

torch::Tensor forward(const PackedLinear& linear, const torch::Tensor& x_MK, torch::Tensor y_MN,
                      Epilogue epilogue = Epilogue::kStore) {
  kernels::LinearScratch scratch;
  linear.forward(x_MK.const_data_ptr<float>(), x_MK.size(0), y_MN.data_ptr<float>(), scratch,
                 epilogue);
  return y_MN;
}

torch::Tensor forward(const PackedLinear& linear, const torch::Tensor& x_MK) {
  return forward(linear, x_MK, torch::full({x_MK.size(0), linear.out_features()}, NAN));
}

// The weights as the packed ones are rounded.
torch::Tensor rounded(const torch::Tensor& weight_NK, Storage storage) {
  if (storage == Storage::kFloat32) return weight_NK;
  if (storage == Storage::kBFloat16) return weight_NK.to(torch::kBFloat16).to(torch::kFloat32);
  const auto scale = weight_NK.abs().amax(1, true) / 127;
  return (weight_NK / scale).round() * scale;
}

const test::Tolerance kSum{2e-5, 2e-5};

}  // namespace

TEST_CASE("packed linear: the plain formula, at each level, storage and number of rows",
          "[kernels]") {
  torch::manual_seed(0);
  for (const CpuIsa isa : kLevels) {
    if (isa > kernels::best_cpu_isa()) {
      WARN("this processor has no " << kernels::cpu_isa_name(isa) << ": not tested");
      continue;
    }
    for (const Storage storage : {Storage::kFloat32, Storage::kBFloat16, Storage::kInt8}) {
      for (const int64_t num_outputs : {1, 32, 70}) {
        const auto weight_NK = torch::randn({num_outputs, 130}) * 0.2;
        const PackedLinear linear({weight_NK}, storage, isa);
        for (const int64_t num_rows : {1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 16, 33, 64, 65, 130}) {
          INFO(kernels::cpu_isa_name(isa) << " storage " << static_cast<int>(storage) << " outputs "
                                          << num_outputs << " rows " << num_rows);
          const auto x_MK = torch::randn({num_rows, 130});
          const auto expected_MN = at::linear(x_MK, rounded(weight_NK, storage));
          REQUIRE_THAT(forward(linear, x_MK), test::AllClose(expected_MN, kSum));
          const auto y_MN = torch::randn({num_rows, num_outputs});
          REQUIRE_THAT(forward(linear, x_MK, y_MN.clone(), Epilogue::kAdd),
                       test::AllClose(y_MN + expected_MN, kSum));
        }
      }
    }
  }
}

TEST_CASE("packed linear: inputs are rounded where that is asked for and tiles are there",
          "[kernels]") {
  torch::manual_seed(6);
  const auto weight_NK = torch::randn({70, 130}) * 0.2, x_MK = torch::randn({45, 130});
  const auto expected_MN = [&](const torch::Tensor& inputs_MK) {
    return at::linear(inputs_MK, rounded(weight_NK, Storage::kBFloat16));
  };
  for (const CpuIsa isa : kLevels) {
    const PackedLinear linear({weight_NK}, Storage::kBFloat16, isa, kernels::Inputs::kRounded);
    const bool has_tiles = std::min(isa, kernels::best_cpu_isa()) == CpuIsa::kAmx;
    for (const int64_t num_rows : {1, 16, 17, 45}) {
      INFO(kernels::cpu_isa_name(isa) << " rows " << num_rows);
      const auto some_MK = x_MK.slice(0, 0, num_rows);
      const auto inputs_MK = has_tiles ? rounded(some_MK, Storage::kBFloat16) : some_MK;
      CHECK_THAT(forward(linear, some_MK), test::AllClose(expected_MN(inputs_MK), kSum));
    }
  }
}

TEST_CASE("packed linear: long sums, where rows are worked on in pieces", "[kernels]") {
  torch::manual_seed(1);
  const auto weight_NK = torch::randn({48, 3000}) * 0.02, x_MK = torch::randn({16, 3000});
  for (const Storage storage : {Storage::kFloat32, Storage::kBFloat16, Storage::kInt8}) {
    const PackedLinear linear({weight_NK}, storage, kernels::best_cpu_isa());
    CHECK_THAT(forward(linear, x_MK),
               test::AllClose(at::linear(x_MK, rounded(weight_NK, storage)), kSum));
  }
}

TEST_CASE("packed linear: SwiGLU in one pass", "[kernels]") {
  torch::manual_seed(2);
  for (const CpuIsa isa : kLevels) {
    for (const int64_t width : {8, 16, 72}) {
      const auto w1 = torch::randn({width, 64}) * 0.3, w3 = torch::randn({width, 64}) * 0.3;
      const auto x_MK = torch::randn({3, 64}) * 2;
      for (const Storage storage : {Storage::kFloat32, Storage::kBFloat16, Storage::kInt8}) {
        const auto expected = torch::silu(at::linear(x_MK, rounded(w1, storage))) *
                              at::linear(x_MK, rounded(w3, storage));
        CHECK_THAT(forward(PackedLinear::swiglu(w1, w3, storage, isa), x_MK),
                   test::AllClose(expected, {1e-4, 2e-5}));
      }
    }
  }
}

TEST_CASE("packed linear: a row's result is the same to the last bit in any company", "[kernels]") {
  torch::manual_seed(3);
  const auto weight_NK = torch::randn({96, 768}), x_MK = torch::randn({70, 768});
  for (const auto& [storage, inputs] : {std::pair(Storage::kFloat32, kernels::Inputs::kWhole),
                                        {Storage::kBFloat16, kernels::Inputs::kWhole},
                                        {Storage::kBFloat16, kernels::Inputs::kRounded},
                                        {Storage::kInt8, kernels::Inputs::kWhole}}) {
    const PackedLinear linear({weight_NK}, storage, kernels::best_cpu_isa(), inputs);
    const auto all_MN = forward(linear, x_MK);
    for (const int64_t num_rows : {1, 2, 3, 5, 8, 12, 31}) {
      CHECK(torch::equal(forward(linear, x_MK.slice(0, 7, 7 + num_rows).contiguous()),
                         all_MN.slice(0, 7, 7 + num_rows)));
    }
    const int threads = at::get_num_threads();
    at::set_num_threads(1);
    CHECK(torch::equal(forward(linear, x_MK), all_MN));
    at::set_num_threads(threads);
  }
}

TEST_CASE("packed linear: a scratch serves calls of any size one after the other", "[kernels]") {
  torch::manual_seed(5);
  const PackedLinear wide({torch::randn({40, 700})}, Storage::kFloat32, kernels::best_cpu_isa());
  const PackedLinear narrow({torch::randn({70, 130})}, Storage::kBFloat16, kernels::best_cpu_isa());
  kernels::LinearScratch scratch;
  for (const int64_t num_rows : {20, 3, 64, 13}) {
    for (const PackedLinear* linear : {&wide, &narrow}) {
      INFO(num_rows << " rows of " << linear->in_features());
      const auto x_MK = torch::randn({num_rows, linear->in_features()});
      auto y_MN = torch::full({num_rows, linear->out_features()}, NAN);
      linear->forward(x_MK.const_data_ptr<float>(), num_rows, y_MN.data_ptr<float>(), scratch);
      CHECK(torch::equal(y_MN, forward(*linear, x_MK)));  // a scratch that was never used
    }
  }
  const float* const kept = scratch.reserve(1);
  CHECK(scratch.reserve(64 * 700) == kept);
}

TEST_CASE("packed linear: stacked and half-precision weights", "[kernels]") {
  torch::manual_seed(4);
  const auto a = torch::randn({10, 32}), b = torch::randn({40, 32}), x_MK = torch::randn({2, 32});
  const PackedLinear stacked({a, b}, Storage::kFloat32, kernels::best_cpu_isa());
  CHECK(stacked.out_features() == 50);
  CHECK_THAT(forward(stacked, x_MK), test::AllClose(at::linear(x_MK, torch::cat({a, b})), kSum));
  for (const auto dtype : {torch::kBFloat16, torch::kHalf}) {
    const PackedLinear half({a.to(dtype)}, Storage::kFloat32, kernels::best_cpu_isa());
    CHECK_THAT(forward(half, x_MK),
               test::AllClose(at::linear(x_MK, a.to(dtype).to(torch::kFloat32)), kSum));
  }
  CHECK(test::error_of([&] {
          PackedLinear({a.to(torch::kDouble)}, Storage::kInt8, CpuIsa::kAvx2);
        }).find("weights are Double") != std::string::npos);
  CHECK(test::error_of([&] {
          PackedLinear({torch::randn({4, 3})}, Storage::kInt8, CpuIsa::kAvx2);
        }).find("even number of columns") != std::string::npos);
}

}  // namespace vgen
