#include "vgen/kernels/kv_cache.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/torch_support.h"

namespace vgen {

using kernels::CacheRow;
using kernels::CpuIsa;
using kernels::KvCache;
using kernels::Storage;

namespace {

// H query heads, K key heads, D head dim, S positions.
struct Case {
  int64_t H, K, D, S;
};

// Attention of position `last` over first..last by the plain formula. qkv_SW: all positions'
// projections, not rotated. Returns (H * D).
torch::Tensor plain_attention(const Case& c, const torch::Tensor& qkv_SW, const torch::Tensor& rope,
                              int64_t first, int64_t last) {
  const auto heads = qkv_SW.view({-1, c.H + 2 * c.K, c.D});
  const auto rotate = [&](const torch::Tensor& x) {
    const auto pairs = x.unflatten(-1, {c.D / 2, 2});
    const auto a = pairs.select(-1, 0), b = pairs.select(-1, 1);
    const auto cos = rope.slice(0, 0, x.size(0)).select(-1, 0).unsqueeze(1);
    const auto sin = rope.slice(0, 0, x.size(0)).select(-1, 1).unsqueeze(1);
    return torch::stack({a * cos - b * sin, b * cos + a * sin}, -1).flatten(2);
  };
  const auto query = rotate(heads.slice(1, 0, c.H))[last];  // (H, D)
  const auto key = rotate(heads.slice(1, c.H, c.H + c.K)).slice(0, first, last + 1);
  const auto value = heads.slice(1, c.H + c.K).slice(0, first, last + 1);  // (T, K, D)
  const auto key_HTD = key.transpose(0, 1).repeat_interleave(c.H / c.K, 0);
  const auto value_HTD = value.transpose(0, 1).repeat_interleave(c.H / c.K, 0);
  const auto score = torch::matmul(key_HTD, query.unsqueeze(-1)).squeeze(-1) / std::sqrt(c.D);
  return torch::matmul(score.softmax(-1).unsqueeze(1), value_HTD).flatten();
}

}  // namespace

TEST_CASE("kv cache: attention by the plain formula, at each level and storage", "[kernels]") {
  torch::manual_seed(0);
  const Case c =
      GENERATE(Case{2, 2, 32, 40}, Case{6, 2, 64, 50}, Case{4, 4, 100, 20}, Case{3, 1, 20, 37});
  const int64_t width = (c.H + 2 * c.K) * c.D;
  const auto qkv_SW = torch::randn({c.S, width}), rope = torch::randn({c.S, c.D / 2, 2});
  for (const CpuIsa isa : {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAmx}) {
    for (const Storage storage : {Storage::kFloat32, Storage::kBFloat16}) {
      INFO(kernels::cpu_isa_name(isa) << " H " << c.H << " D " << c.D);
      KvCache cache({.num_slots = 3,
                     .num_layers = 2,
                     .num_heads = c.H,
                     .num_kv_heads = c.K,
                     .head_dim = c.D,
                     .max_length = c.S},
                    storage, isa);
      // Two slots in one call, at different positions, and an offset: the second slot is 5 behind.
      const test::Tolerance tolerance =
          storage == Storage::kFloat32 ? test::Tolerance{2e-5, 0} : test::Tolerance{4e-2, 2e-2};
      for (int64_t t = 0; t < c.S; ++t) {
        std::vector<CacheRow> rows = {{.slot = 2, .position = t, .first = 3}};
        if (t >= 5) rows.push_back({.slot = 0, .position = t - 5});
        auto qkv = torch::stack({qkv_SW[t], qkv_SW[std::max<int64_t>(t - 5, 0)]});
        cache.append(qkv.data_ptr<float>(), rows, 1, rope.const_data_ptr<float>());
        auto out = torch::full({2, c.H * c.D}, NAN);
        cache.attend(qkv.const_data_ptr<float>(), rows, 1, out.data_ptr<float>());
        REQUIRE_THAT(out[0],
                     test::AllClose(plain_attention(c, qkv_SW, rope, std::min<int64_t>(3, t), t),
                                    tolerance));
        if (t >= 5) {
          REQUIRE_THAT(out[1],
                       test::AllClose(plain_attention(c, qkv_SW, rope, 0, t - 5), tolerance));
        }
      }
    }
  }
}

TEST_CASE("kv cache: what a slot held before does not leak", "[kernels]") {
  const Case c{2, 1, 32, 20};
  torch::manual_seed(1);
  const auto rope = torch::randn({c.S, c.D / 2, 2});
  const auto storage = GENERATE(Storage::kFloat32, Storage::kBFloat16);
  KvCache cache({.num_heads = c.H, .num_kv_heads = c.K, .head_dim = c.D, .max_length = c.S},
                storage, kernels::best_cpu_isa());
  const auto run = [&](const torch::Tensor& qkv_SW, int64_t num_positions) {
    std::vector<torch::Tensor> all;
    for (int64_t t = 0; t < num_positions; ++t) {
      auto qkv = qkv_SW[t].clone();
      const std::vector<CacheRow> rows = {{.position = t}};
      cache.append(qkv.data_ptr<float>(), rows, 0, rope.const_data_ptr<float>());
      auto out = torch::empty({c.H * c.D});
      cache.attend(qkv.const_data_ptr<float>(), rows, 0, out.data_ptr<float>());
      all.push_back(out);
    }
    return torch::stack(all);
  };
  const auto qkv_SW = torch::randn({c.S, (c.H + 2 * c.K) * c.D});
  const auto fresh = run(qkv_SW, 8);
  run(torch::full_like(qkv_SW, NAN), c.S);
  CHECK(torch::equal(run(qkv_SW, 8), fresh));
}

}  // namespace vgen
