// The CUDA kernels against the same operators on the CPU, which are tested against plain formulas.

#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <limits>

#include "support/torch_support.h"
#include "vgen/kernels/adaln.h"
#include "vgen/kernels/cached_attention.h"
#include "vgen/kernels/cross_entropy.h"
#include "vgen/kernels/group_norm.h"
#include "vgen/kernels/rms_norm.h"
#include "vgen/kernels/rotary.h"
#include "vgen/kernels/swiglu.h"
#include "vgen/kernels/unit_heads.h"

namespace vgen::kernels {
namespace {

constexpr torch::ScalarType kDtypes[] = {torch::kFloat32, torch::kBFloat16, torch::kFloat16};
constexpr double kEps = 1e-5;

torch::Tensor on_device(const torch::Tensor& tensor) { return tensor.to(torch::kCUDA); }
torch::Tensor wide(const torch::Tensor& tensor) {
  return tensor.to(torch::TensorOptions(torch::kCPU).dtype(torch::kFloat32));
}

/// Of values near one, rounded to that dtype once.
test::Tolerance tolerance_of(torch::ScalarType dtype) {
  switch (dtype) {
    case torch::kBFloat16:
      return {0x1p-8, 0x1p-7};
    case torch::kFloat16:
      return {0x1p-11, 0x1p-10};
    default:
      return {2e-5, 1e-5};
  }
}

/// Random values that both sides have: of the dtype on the device, float32 on the CPU.
struct Pair {
  torch::Tensor cuda, cpu;
};
Pair random(torch::IntArrayRef sizes, torch::ScalarType dtype) {
  const auto narrow = torch::randn(sizes).to(dtype);
  return {on_device(narrow), narrow.to(torch::kFloat32)};
}

TEST_CASE("group norm on CUDA: as on the CPU", "[kernels][cuda]") {
  if (test::lacks_cuda()) return;
  torch::manual_seed(7);
  constexpr int64_t kGroups = 32;
  constexpr auto kLast = torch::MemoryFormat::ChannelsLast;
  for (const auto dtype : kDtypes) {
    for (const auto& [samples, channels, side] : {std::tuple<int64_t, int64_t, int64_t>{1, 32, 1},
                                                  {2, 96, 7},
                                                  {3, 128, 64},
                                                  {1, 512, 100},
                                                  {2, 2048, 5}}) {
      for (const bool has_silu : {false, true}) {
        INFO(c10::toString(dtype) << ", " << samples << " samples of " << channels
                                  << " channels of " << side << (has_silu ? ", silu" : ""));
        // Far from zero, as nothing that squares are summed of should be.
        const auto values = (torch::randn({samples, channels, side, side}) + 30).to(dtype);
        const auto slopes = torch::randn(values.sizes()).to(dtype).contiguous(kLast);
        const Pair x{on_device(values).contiguous(kLast),
                     values.to(torch::kFloat32).contiguous(kLast)};
        const Pair dy{on_device(slopes), slopes.to(torch::kFloat32)};
        const Pair weight = random({channels}, torch::kFloat32);
        const Pair bias = random({channels}, torch::kFloat32);
        REQUIRE(is_group_norm_input(x.cuda));
        const auto found = group_norm_stats(x.cuda, kGroups, 1e-6);
        const auto wanted = group_norm_stats(x.cpu, kGroups, 1e-6);
        CHECK_THAT(wide(found.mean_BG), test::AllClose(wanted.mean_BG, {1e-5, 1e-6}));
        // One value alone has no deviation: 1000 on both sides.
        CHECK_THAT(wide(found.rstd_BG), test::AllClose(wanted.rstd_BG, {1e-5, 1e-4}));
        const GroupNormParameters of_cuda{weight.cuda, bias.cuda, has_silu};
        const GroupNormParameters of_cpu{weight.cpu, bias.cpu, has_silu};
        test::Tolerance tolerance = tolerance_of(dtype);
        // One value alone has no deviation, and 1 / sqrt(eps) makes much of the mean's rounding.
        const double rstd = wanted.rstd_BG.max().item<double>();
        tolerance.absolute += 2e-4 + 4e-6 * rstd;
        CHECK_THAT(wide(group_norm_apply(x.cuda, found, of_cuda)),
                   test::AllClose(group_norm_apply(x.cpu, wanted, of_cpu), tolerance));
        const auto slope = group_norm_gradient(x.cuda, dy.cuda, found, of_cuda);
        const auto right = group_norm_gradient(x.cpu, dy.cpu, wanted, of_cpu);
        CHECK_THAT(wide(slope.x_BCHW),
                   test::AllClose(right.x_BCHW, {tolerance.absolute * rstd, tolerance.relative}));
        const auto largest = [](const torch::Tensor& x) { return x.abs().max().item<double>(); };
        CHECK_THAT(wide(slope.weight_C),
                   test::AllClose(right.weight_C,
                                  {1e-3 + 4e-6 * rstd + 1e-4 * largest(right.weight_C), 0}));
        CHECK_THAT(
            wide(slope.bias_C),
            test::AllClose(right.bias_C, {1e-3 + 4e-6 * rstd + 1e-4 * largest(right.bias_C), 0}));
      }
    }
  }
}

TEST_CASE("bias and residual of channels on CUDA: as by separate operators", "[kernels][cuda]") {
  if (test::lacks_cuda()) return;
  torch::manual_seed(9);
  constexpr auto kLast = torch::MemoryFormat::ChannelsLast;
  for (const auto dtype : kDtypes) {
    for (const auto& [samples, channels, side] : {std::tuple<int64_t, int64_t, int64_t>{1, 8, 1},
                                                  {3, 72, 5},
                                                  {2, 1024, 17},
                                                  {4, 128, 96}}) {
      INFO(c10::toString(dtype) << ", " << samples << " samples of " << channels << " channels of "
                                << side);
      const std::vector<int64_t> shape{samples, channels, side, side};
      Pair x = random(shape, dtype);
      const Pair bias = random({channels}, torch::kFloat32), residual = random(shape, dtype);
      x.cuda = x.cuda.contiguous(kLast);
      const auto sums = channel_sums(x.cuda);
      CHECK(sums.scalar_type() == torch::kFloat32);
      CHECK_THAT(wide(sums), test::AllClose(x.cpu.sum({0, 2, 3}), {5e-3, 1e-4}));
      const auto before = x.cuda.clone();
      const auto wanted = x.cpu + bias.cpu.view({-1, 1, 1});
      add_to_channels(x.cuda, bias.cuda);
      CHECK_THAT(wide(x.cuda), test::AllClose(wanted, tolerance_of(dtype)));
      x.cuda.copy_(before);
      add_to_channels(x.cuda, bias.cuda, residual.cuda.contiguous(kLast));
      CHECK_THAT(wide(x.cuda), test::AllClose(wanted + residual.cpu, tolerance_of(dtype)));
    }
  }
}

TEST_CASE("rms norm on CUDA: as on the CPU", "[kernels][cuda]") {
  if (test::lacks_cuda()) return;
  torch::manual_seed(0);
  for (const auto dtype : kDtypes) {
    for (const int64_t columns : {8, 264, 768, 8192}) {
      for (const int64_t rows : {1, 3, 3000}) {
        INFO(c10::toString(dtype) << ", " << rows << " rows of " << columns);
        const Pair x = random({rows, columns}, torch::kFloat32),
                   dy = random({rows, columns}, dtype);
        const Pair weight = random({columns}, torch::kFloat32);
        REQUIRE(is_rms_norm_input(x.cuda, weight.cuda));
        const auto found = rms_norm(x.cuda, weight.cuda, kEps, dtype);
        const auto wanted = rms_norm(x.cpu, weight.cpu, kEps, torch::kFloat32);
        CHECK(found.y.scalar_type() == dtype);
        CHECK_THAT(wide(found.y), test::AllClose(wanted.y, tolerance_of(dtype)));
        const auto slope = rms_norm_gradient(x.cuda, weight.cuda, found.rstd_N, dy.cuda);
        const auto right = rms_norm_gradient(x.cpu, weight.cpu, wanted.rstd_N, dy.cpu);
        CHECK_THAT(wide(slope.x), test::AllClose(right.x, {2e-5, 1e-5}));
        CHECK_THAT(wide(slope.weight_C), test::AllClose(right.weight_C, {1e-3, 1e-4}));
        // The same sums in the same order.
        CHECK(torch::equal(rms_norm_gradient(x.cuda, weight.cuda, found.rstd_N, dy.cuda).weight_C,
                           slope.weight_C));
      }
    }
  }
}

TEST_CASE("rms norm on CUDA: narrow rows and weights", "[kernels][cuda]") {
  if (test::lacks_cuda()) return;
  torch::manual_seed(1);
  for (const auto dtype : {torch::kBFloat16, torch::kFloat16}) {
    const Pair x = random({70, 64}, dtype), weight = random({64}, dtype);
    const auto found = rms_norm(x.cuda, weight.cuda, kEps, dtype);
    // quirk: rounded before the weight, and behind it once more
    const auto normed = (x.cpu * (x.cpu.square().mean(-1, true) + kEps).rsqrt()).to(dtype);
    CHECK_THAT(wide(found.y), test::AllClose(wide(normed) * weight.cpu, tolerance_of(dtype)));
    const auto slope = rms_norm_gradient(x.cuda, weight.cuda, found.rstd_N, found.y);
    CHECK(slope.x.scalar_type() == dtype);
    CHECK(slope.weight_C.scalar_type() == dtype);
  }
  // Rows that begin where no vector may: copied.
  const auto odd = torch::randn({5 * 64 + 1}, torch::kCUDA).slice(0, 1).view({5, 64});
  const auto weight = torch::ones({64}, torch::kCUDA);
  CHECK(torch::equal(rms_norm(odd, weight, kEps, torch::kFloat32).y,
                     rms_norm(odd.clone(), weight, kEps, torch::kFloat32).y));
}

TEST_CASE("modulated norm and gated sum on CUDA: as on the CPU", "[kernels][cuda]") {
  if (test::lacks_cuda()) return;
  torch::manual_seed(2);
  for (const auto dtype : kDtypes) {
    for (const auto& [samples, length, columns] :
         {std::tuple<int64_t, int64_t, int64_t>{1, 1, 8}, {3, 5, 264}, {4, 680, 1024}}) {
      INFO(c10::toString(dtype) << ", " << samples << " samples of " << length << " rows of "
                                << columns);
      const Pair x = random({samples, length, columns}, dtype), dy = random(x.cpu.sizes(), dtype);
      // As a block has them: parts of one tensor.
      const Pair factors = random({samples, 3, columns}, dtype);
      const auto of_cuda = factors.cuda.unbind(1);
      std::vector<torch::Tensor> of_cpu;
      for (const auto& factor : factors.cpu.unbind(1)) of_cpu.push_back(factor.contiguous());
      REQUIRE(is_adaln_input(x.cuda));
      const test::Tolerance tolerance = tolerance_of(dtype), sums{2e-3, 1e-4};

      const auto found = modulated_norm(x.cuda, of_cuda[0], of_cuda[1], kEps, dtype);
      const auto wanted = modulated_norm(x.cpu, of_cpu[0], of_cpu[1], kEps, torch::kFloat32);
      CHECK_THAT(wide(found.y_BLC), test::AllClose(wanted.y_BLC, tolerance));
      const auto slope =
          modulated_norm_gradient(x.cuda, of_cuda[0], found.mean_N, found.rstd_N, dy.cuda);
      const auto right =
          modulated_norm_gradient(x.cpu, of_cpu[0], wanted.mean_N, wanted.rstd_N, dy.cpu);
      CHECK_THAT(wide(slope.x_BLC), test::AllClose(right.x_BLC, tolerance));
      CHECK_THAT(wide(slope.scale_BC), test::AllClose(right.scale_BC, sums));
      CHECK_THAT(wide(slope.shift_BC), test::AllClose(right.shift_BC, sums));

      CHECK_THAT(wide(gated_sum(x.cuda, dy.cuda, of_cuda[2])),
                 test::AllClose(gated_sum(x.cpu, dy.cpu, of_cpu[2]), tolerance));
      const auto gate_slope = gated_sum_gradient(x.cuda, of_cuda[2], dy.cuda);
      const auto gate_right = gated_sum_gradient(x.cpu, of_cpu[2], dy.cpu);
      CHECK_THAT(wide(gate_slope.branch_BLC), test::AllClose(gate_right.branch_BLC, tolerance));
      CHECK_THAT(wide(gate_slope.gate_BC), test::AllClose(gate_right.gate_BC, sums));
    }
  }
}

TEST_CASE("swiglu on CUDA: as on the CPU", "[kernels][cuda]") {
  if (test::lacks_cuda()) return;
  torch::manual_seed(3);
  for (const auto dtype : kDtypes) {
    const Pair a = random({3, 7, 2048}, dtype), b = random({3, 7, 2048}, dtype);
    const Pair dy = random({3, 7, 2048}, dtype);
    REQUIRE(is_swiglu_input(a.cuda, b.cuda));
    const test::Tolerance tolerance = tolerance_of(dtype);
    CHECK_THAT(wide(swiglu(a.cuda, b.cuda)), test::AllClose(swiglu(a.cpu, b.cpu), tolerance));
    const auto slope = swiglu_gradient(a.cuda, b.cuda, dy.cuda);
    const auto right = swiglu_gradient(a.cpu, b.cpu, dy.cpu);
    CHECK_THAT(wide(slope.a), test::AllClose(right.a, tolerance));
    CHECK_THAT(wide(slope.b), test::AllClose(right.b, tolerance));
  }
  // Halves of wider rows.
  const Pair wider = random({5, 128}, torch::kFloat32);
  const auto of_cuda = wider.cuda.chunk(2, -1), of_cpu = wider.cpu.chunk(2, -1);
  CHECK_THAT(wide(swiglu(of_cuda[0], of_cuda[1])),
             test::AllClose(swiglu(of_cpu[0], of_cpu[1]), test::kFloat32));
  // Far from zero there is nothing that overflows.
  const auto far = torch::tensor({-1e4F, -100.0F, -90.0F, 0.0F, 90.0F, 100.0F, 1e4F, 1.0F});
  CHECK_THAT(wide(swiglu(on_device(far), on_device(torch::ones({8})))),
             test::AllClose(swiglu(far, torch::ones({8})), test::kFloat32));
  CHECK(swiglu_gradient(on_device(far), on_device(far), on_device(far))
            .a.isfinite()
            .all()
            .item<bool>());
}

TEST_CASE("rotary heads on CUDA: as on the CPU", "[kernels][cuda]") {
  if (test::lacks_cuda()) return;
  torch::manual_seed(4);
  for (const auto dtype : kDtypes) {
    for (const int64_t head_dim : {8, 48, 64, 104}) {
      INFO(c10::toString(dtype) << ", heads of " << head_dim);
      // 6 heads of queries, 2 of keys, 2 of values; behind each other in a wider row
      const Pair row = random({3, 5, 11 * head_dim}, dtype);
      const auto heads = [&](const torch::Tensor& x) {
        return x.slice(2, 0, 10 * head_dim).unflatten(-1, {10, head_dim});
      };
      const auto rope = torch::randn({5, head_dim / 2, 2});
      REQUIRE(is_rotary_input(heads(row.cuda), on_device(rope)));
      CHECK_THAT(wide(rotate_heads(heads(row.cuda), on_device(rope), 8)),
                 test::AllClose(rotate_heads(heads(row.cpu), rope, 8), tolerance_of(dtype)));
      const auto parts_of = [&](const torch::Tensor& x) {
        const auto parts = heads(x).transpose(1, 2).split_with_sizes({6, 2, 2}, 1);
        return HeadGradients{parts[0], parts[1], parts[2].clone()};
      };
      CHECK_THAT(
          wide(rotate_heads_gradient(parts_of(row.cuda), on_device(rope))),
          test::AllClose(rotate_heads_gradient(parts_of(row.cpu), rope), tolerance_of(dtype)));
    }
  }
}

TEST_CASE("cached attention on CUDA: as by separate operators", "[kernels][cuda]") {
  if (test::lacks_cuda()) return;
  torch::manual_seed(8);
  constexpr int64_t kRows = 5, kSlots = 7, kLength = 90;
  for (const auto dtype : kDtypes) {
    for (const auto& [heads, kv_heads, head_dim] : {std::tuple<int64_t, int64_t, int64_t>{2, 2, 8},
                                                    {4, 2, 16},
                                                    {12, 12, 64},
                                                    {8, 2, 128},
                                                    {2, 1, 256}}) {
      INFO(c10::toString(dtype) << ", " << heads << " heads, " << kv_heads << " of keys, of "
                                << head_dim);
      const Pair qkv = random({kRows, (heads + 2 * kv_heads) * head_dim}, dtype);
      const Pair key = random({kSlots, kv_heads, kLength, head_dim}, dtype);
      const Pair value = random({kSlots, kv_heads, kLength, head_dim}, dtype);
      const auto angle = torch::randn({kLength, head_dim / 2});
      const auto rope = torch::stack({angle.cos(), angle.sin()}, -1);
      const auto slot = torch::tensor({3, 0, 6, 1, 2}, torch::kLong);
      // the first position, a full cache, an idle row
      const auto position = torch::tensor({40, 0, 88, 89, 33}, torch::kLong);
      const auto first = torch::tensor({0, 0, 7, 0, 33}, torch::kLong);
      REQUIRE(has_cached_attention(key.cuda));
      const auto found =
          cached_attention({qkv.cuda, on_device(rope), on_device(slot), on_device(position),
                            on_device(first), key.cuda, value.cuda});
      CHECK(found.scalar_type() == dtype);
      const auto turned = rotate_heads(qkv.cpu.view({1, kRows, -1, head_dim}),
                                       rope.index_select(0, position), heads + kv_heads)[0]
                              .to(dtype)
                              .to(torch::kFloat32);
      for (int64_t r = 0; r < kRows; ++r) {
        const auto s = slot[r].item<int64_t>(), p = position[r].item<int64_t>();
        const auto keys = key.cpu[s].slice(1, 0, p + 1), values = value.cpu[s].slice(1, 0, p + 1);
        keys.select(1, p).copy_(turned[r].slice(0, heads, heads + kv_heads));
        values.select(1, p).copy_(turned[r].slice(0, heads + kv_heads));
        CHECK_THAT(wide(key.cuda[s].select(1, p)),
                   test::AllClose(keys.select(1, p), tolerance_of(dtype)));
        CHECK(torch::equal(wide(value.cuda[s].select(1, p)), values.select(1, p)));
        if (p == kLength - 1) {
          CHECK(found[r].eq(0).all().item<bool>());
          continue;
        }
        const auto read = [&](const torch::Tensor& x) {
          return x.slice(1, first[r].item<int64_t>()).repeat_interleave(heads / kv_heads, 0);
        };
        const auto query = turned[r].slice(0, 0, heads).unsqueeze(1);
        const auto wanted =
            at::scaled_dot_product_attention(query, read(keys), read(values)).flatten();
        CHECK_THAT(wide(found[r]), test::AllClose(wanted, {tolerance_of(dtype).absolute * 2,
                                                           tolerance_of(dtype).relative}));
      }
    }
  }
}

TEST_CASE("unit heads on CUDA: as on the CPU", "[kernels][cuda]") {
  if (test::lacks_cuda()) return;
  torch::manual_seed(5);
  for (const auto dtype : kDtypes) {
    for (const auto& [heads, head_dim] :
         {std::pair<int64_t, int64_t>{1, 8}, {3, 16}, {16, 64}, {5, 128}, {2, 256}}) {
      INFO(c10::toString(dtype) << ", " << heads << " heads of " << head_dim);
      Pair qkv = random({2, 301, 3, heads, head_dim}, dtype);
      qkv.cuda[0][0].zero_();  // vectors of no length
      qkv.cpu[0][0].zero_();
      const auto scale = torch::rand({heads}) + 1;
      REQUIRE(is_unit_heads_input(qkv.cuda));
      const auto found = unit_heads(qkv.cuda, on_device(scale));
      const auto wanted = unit_heads(qkv.cpu, scale);
      const test::Tolerance tolerance = tolerance_of(dtype);
      CHECK_THAT(wide(found.query_BLHD), test::AllClose(wanted.query_BLHD, tolerance));
      CHECK_THAT(wide(found.key_BLHD), test::AllClose(wanted.key_BLHD, tolerance));
      CHECK(torch::equal(wide(found.value_BLHD), wanted.value_BLHD));
      const auto gradient = [&] { return random({2, 301, heads, head_dim}, dtype); };
      Pair dquery = gradient(), dkey = gradient();
      const Pair dvalue = gradient();
      for (Pair* pair : {&dquery, &dkey}) {
        pair->cuda[0][0].zero_();
        pair->cpu[0][0].zero_();
      }
      const auto slope = unit_heads_gradient(qkv.cuda, on_device(scale), found.rnorm_N2H,
                                             dquery.cuda, dkey.cuda, dvalue.cuda);
      const auto right =
          unit_heads_gradient(qkv.cpu, scale, wanted.rnorm_N2H, dquery.cpu, dkey.cpu, dvalue.cpu);
      CHECK_THAT(wide(slope.qkv_BL3HD), test::AllClose(right.qkv_BL3HD, tolerance));
      CHECK_THAT(wide(slope.scale_H), test::AllClose(right.scale_H, {2e-3, 1e-4}));
    }
  }
}

TEST_CASE("cross entropy on CUDA: as on the CPU", "[kernels][cuda]") {
  if (test::lacks_cuda()) return;
  torch::manual_seed(6);
  for (const auto dtype : kDtypes) {
    for (const int64_t classes : {8, 4096, 16384}) {
      for (const double smoothing : {0.0, 0.1}) {
        INFO(c10::toString(dtype) << ", " << classes << " classes, smoothing " << smoothing);
        Pair logits = random({33, classes}, dtype);
        // The first of equals is the likeliest; one row has all its mass at one class.
        for (torch::Tensor* x : {&logits.cuda, &logits.cpu}) {
          x->select(0, 0).fill_(1);
          x->select(0, 1).fill_(-std::numeric_limits<float>::infinity());
          x->select(0, 1).select(0, 5).fill_(3);
        }
        auto target = torch::randint(classes, {33}, torch::kLong);
        target[0] = 0;
        target[1] = 5;
        REQUIRE(is_cross_entropy_input(logits.cuda, on_device(target)));
        const auto found = cross_entropy(logits.cuda, on_device(target), smoothing);
        const auto wanted = cross_entropy(logits.cpu, target, smoothing);
        // Smoothed, a row that rules classes out has no finite loss, here as there.
        const auto rows = smoothing == 0 ? torch::arange(33) : torch::arange(33).slice(0, 2);
        const auto of = [&](const torch::Tensor& x) { return wide(x).index_select(0, rows); };
        CHECK_THAT(of(found.loss_N), test::AllClose(of(wanted.loss_N), {2e-5, 1e-5}));
        CHECK_THAT(wide(found.plain_loss_N), test::AllClose(wanted.plain_loss_N, {2e-5, 1e-5}));
        CHECK(torch::equal(wide(found.is_right_N), wanted.is_right_N));
        const auto dloss = torch::randn({33});
        const auto slope = cross_entropy_gradient(logits.cuda, on_device(target), found.log_sum_N,
                                                  on_device(dloss), smoothing);
        const auto right =
            cross_entropy_gradient(logits.cpu, target, wanted.log_sum_N, dloss, smoothing);
        CHECK(slope.scalar_type() == dtype);
        CHECK_THAT(wide(slope), test::AllClose(right, tolerance_of(dtype)));
      }
    }
  }
}

TEST_CASE("cross entropy on CUDA: a target that is no class is seen", "[kernels][cuda]") {
  if (test::lacks_cuda()) return;
  const auto logits = torch::zeros({4, 16}, torch::kCUDA);
  const auto target = on_device(torch::tensor({3, -1, 16, 15}, torch::kLong));
  const auto found = cross_entropy(logits, target);
  const auto expected = torch::tensor({false, true, true, false});
  CHECK(torch::equal(found.loss_N.isnan().cpu(), expected));
  const auto slope =
      cross_entropy_gradient(logits, target, found.log_sum_N, torch::ones({4}, torch::kCUDA));
  CHECK(torch::equal(slope.isnan().all(1).cpu(), expected));
}

}  // namespace
}  // namespace vgen::kernels
