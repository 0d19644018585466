// The heads of attention, turned, with autograd against separate operators.

#include "vgen/nn/rotary.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/torch_support.h"

namespace vgen::nn {
namespace {

struct Case {
  int64_t n_head, n_kv_head;
};

AttentionHeads plain(const torch::Tensor& qkv_BSF, const torch::Tensor& rope_SP2, const Case& c) {
  const auto parts = qkv_BSF.unflatten(-1, {c.n_head + 2 * c.n_kv_head, -1})
                         .split_with_sizes({c.n_head, c.n_kv_head, c.n_kv_head}, 2);
  return {apply_rotary(parts[0], rope_SP2).transpose(1, 2),
          apply_rotary(parts[1], rope_SP2).transpose(1, 2), parts[2].transpose(1, 2)};
}

torch::Tensor attend(const AttentionHeads& heads) {
  return at::scaled_dot_product_attention(heads.query_BHSD, heads.key_BKSD, heads.value_BKSD, {},
                                          0.0, /*is_causal=*/true, std::nullopt,
                                          /*enable_gqa=*/true);
}

TEST_CASE("rotary heads: attention over them has the same value and gradient", "[nn]") {
  torch::manual_seed(0);
  const auto rope_SP2 = rotary_table_2d(/*grid_size=*/3, /*head_dim=*/12, 10000, 1);
  for (const Case& c : {Case{4, 4}, Case{4, 2}, Case{3, 1}}) {
    for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
      INFO("heads " << c.n_head << ", " << c.n_kv_head << ", " << c10::toString(dtype));
      const auto qkv_BSF = torch::randn({2, 10, (c.n_head + 2 * c.n_kv_head) * 12}).to(dtype);
      const auto actual_leaf = qkv_BSF.clone().requires_grad_();
      const auto heads = rotary_heads(actual_leaf, rope_SP2, c.n_head, c.n_kv_head);
      const auto expected_leaf = qkv_BSF.clone().requires_grad_();
      const auto expected = plain(expected_leaf, rope_SP2, c);
      CHECK(heads.query_BHSD.scalar_type() == dtype);
      const auto wide = [](const torch::Tensor& x) { return x.detach().to(torch::kFloat32); };
      const test::Tolerance tolerance =
          dtype == torch::kFloat32 ? test::kFloat32 : test::Tolerance{1e-2, 1e-2};
      CHECK_THAT(wide(heads.query_BHSD), test::AllClose(wide(expected.query_BHSD), tolerance));
      CHECK_THAT(wide(heads.key_BKSD), test::AllClose(wide(expected.key_BKSD), tolerance));
      CHECK(torch::equal(heads.value_BKSD, expected.value_BKSD));

      const auto dy = torch::randn({2, c.n_head, 10, 12}).to(dtype);
      attend(heads).backward(dy);
      attend(expected).backward(dy);
      CHECK_THAT(
          wide(actual_leaf.grad()),
          test::AllClose(wide(expected_leaf.grad()),
                         dtype == torch::kFloat32 ? test::kFloat32 : test::Tolerance{5e-2, 5e-2}));
    }
  }
}

TEST_CASE("rotary heads: attention needs no copy of its result", "[nn]") {
  const auto rope_SP2 = rotary_table_2d(2, 8, 10000, 1);
  const auto heads = rotary_heads(torch::randn({2, 5, 3 * 4 * 8}), rope_SP2, 4, 4);
  CHECK(attend(heads).transpose(1, 2).is_contiguous());
}

TEST_CASE("rotary heads: a part that is not used has no gradient", "[nn]") {
  torch::manual_seed(1);
  const auto rope_SP2 = rotary_table_2d(2, 8, 10000, 0);
  const auto qkv_BSF = torch::randn({1, 4, 4 * 8}).requires_grad_();
  const auto dvalue = torch::randn({1, 1, 4, 8});
  const auto gradient = torch::autograd::grad({rotary_heads(qkv_BSF, rope_SP2, 2, 1).value_BKSD},
                                              {qkv_BSF}, {dvalue})[0];
  CHECK(torch::equal(gradient.slice(2, 0, 24), torch::zeros({1, 4, 24})));
  CHECK(torch::equal(gradient.slice(2, 24), dvalue.squeeze(1)));
}

TEST_CASE("rotary heads: float64 takes separate operators", "[nn]") {
  torch::manual_seed(2);
  const auto rope_SP2 = rotary_table_2d(2, 8, 10000, 0).to(torch::kFloat64);
  const auto qkv_BSF = torch::randn({1, 4, 4 * 8}, torch::kFloat64);
  const auto heads = rotary_heads(qkv_BSF, rope_SP2, 2, 1);
  CHECK(torch::equal(heads.query_BHSD, plain(qkv_BSF, rope_SP2, {2, 1}).query_BHSD));
}

}  // namespace
}  // namespace vgen::nn
