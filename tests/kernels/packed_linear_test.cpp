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

TEST_CASE("packed linear: bias, GELU and gates behind the sum, at each level and storage",
          "[kernels]") {
  torch::manual_seed(7);
  constexpr int64_t kOutputs = 70, kSequences = 3, kTokens = 7;
  const auto weight_NK = torch::randn({kOutputs, 130}) * 0.2, bias_N = torch::randn({kOutputs});
  const auto x_MK = torch::randn({kSequences * kTokens, 130});
  const auto gates_S2N = torch::randn({kSequences, 2, kOutputs});  // its rows are not neighbours
  const auto gate_SN = gates_S2N.select(1, 1);
  const auto gate_MN = gate_SN.repeat_interleave(kTokens, 0);
  const auto sum_MN = torch::randn({kSequences * kTokens, kOutputs});
  for (const CpuIsa isa : kLevels) {
    for (const Storage storage : {Storage::kFloat32, Storage::kBFloat16, Storage::kInt8}) {
      INFO(kernels::cpu_isa_name(isa) << " storage " << static_cast<int>(storage));
      PackedLinear linear({weight_NK}, storage, isa);
      linear.set_bias(bias_N);
      const auto expected_MN = at::linear(x_MK, rounded(weight_NK, storage), bias_N);
      CHECK_THAT(forward(linear, x_MK), test::AllClose(expected_MN, kSum));
      CHECK_THAT(forward(linear, x_MK, torch::full_like(sum_MN, NAN), Epilogue::kGelu),
                 test::AllClose(at::gelu(expected_MN, "tanh"), kSum));
      kernels::LinearScratch scratch;
      auto y_MN = sum_MN.clone();
      linear.forward(x_MK.const_data_ptr<float>(), x_MK.size(0), y_MN.data_ptr<float>(), scratch,
                     Epilogue::kAddGated,
                     {.values = gate_SN.const_data_ptr<float>(),
                      .stride = gate_SN.stride(0),
                      .rows = kTokens});
      CHECK_THAT(y_MN, test::AllClose(sum_MN + gate_MN * expected_MN, {5e-5, 2e-5}));
    }
  }
  PackedLinear linear({weight_NK}, Storage::kFloat32, CpuIsa::kPortable);
  CHECK(test::error_of([&] {
          linear.set_bias(torch::zeros({kOutputs + 1}));
        }).find("a bias of 71 values, expected 70") != std::string::npos);
}

TEST_CASE("decode kernels: modulated norm and heads of a given length, at each level",
          "[kernels]") {
  torch::manual_seed(8);
  for (const CpuIsa isa : kLevels) {
    const auto& kernels = kernels::decode_kernels(isa);
    for (const int64_t size : {1, 24, 64, 130, 1024}) {
      INFO(kernels::cpu_isa_name(isa) << " size " << size);
      const auto x_C = torch::randn({size}) * 3 + 1;
      const auto scale_C = torch::randn({size}), shift_C = torch::randn({size});
      auto out_C = torch::full({size}, NAN);
      kernels.modulated_norm(x_C.const_data_ptr<float>(), scale_C.const_data_ptr<float>(),
                             shift_C.const_data_ptr<float>(), out_C.data_ptr<float>(), size, 1e-6f);
      const auto normed_C = torch::layer_norm(x_C, {size}, {}, {}, 1e-6);
      CHECK_THAT(out_C, test::AllClose(normed_C * (scale_C + 1) + shift_C, {2e-5, 2e-5}));

      const auto unit_C = x_C / x_C.norm();
      for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
        const auto storage = dtype == torch::kFloat32 ? Storage::kFloat32 : Storage::kBFloat16;
        // One element more than is written.
        auto head = torch::full({size + 1}, 7.0, dtype);
        const auto store = [&](float length) {
          kernels.store_head(x_C.const_data_ptr<float>(), static_cast<std::byte*>(head.data_ptr()),
                             size, length, storage);
          CHECK(head[size].item<float>() == 7);
          return head.slice(0, 0, size);
        };
        CHECK(store(0).equal(x_C.to(dtype)));
        const test::Tolerance close{1e-6, dtype == torch::kFloat32 ? 1e-6 : 4e-3};
        CHECK_THAT(store(5).to(torch::kFloat32), test::AllClose(unit_C * 5, close));
      }
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
