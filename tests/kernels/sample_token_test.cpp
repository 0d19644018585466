#include "vgen/kernels/sample_token.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "support/golden.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/core/random.h"
#include "vgen/core/strings.h"

namespace vgen {

using kernels::TokenFilter;
using kernels::TokenSampler;
using test::golden_tensor;

namespace {

std::span<const float> row_of(const torch::Tensor& logits_BV, int64_t row) {
  return {logits_BV.const_data_ptr<float>() + row * logits_BV.size(1),
          static_cast<size_t>(logits_BV.size(1))};
}

torch::Tensor as_tensor(std::span<const float> values) {
  return torch::tensor(at::ArrayRef<float>(values.data(), values.size()));
}

struct Sampled {
  torch::Tensor filtered_BV, probability_BV;
};
Sampled sample_all(const torch::Tensor& logits_BV, const TokenFilter& filter) {
  TokenSampler sampler(logits_BV.size(1), kernels::best_cpu_isa());
  std::vector<torch::Tensor> filtered, probability;
  for (int64_t b = 0; b < logits_BV.size(0); ++b) {
    sampler.sample(row_of(logits_BV, b), {}, 1, filter, 0.5);
    filtered.push_back(as_tensor(sampler.filtered()));
    const auto weights = as_tensor(sampler.probabilities());
    probability.push_back(weights / weights.sum());
  }
  return {torch::stack(filtered), torch::stack(probability)};
}

}  // namespace

TEST_CASE("sample token: filtered logits of the official code", "[kernels][golden]") {
  struct Case {
    const char* input;
    const char* name;
    int64_t top_k;
    double top_p;
  };
  const Case c = GENERATE(
      Case{"logits", "filtered_k0_p1", 0, 1}, Case{"logits", "filtered_k1_p1", 1, 1},
      Case{"logits", "filtered_k5_p1", 5, 1}, Case{"logits", "filtered_k59_p1", 59, 1},
      Case{"logits", "filtered_k0_p0.9", 0, 0.9}, Case{"logits", "filtered_k0_p0.3", 0, 0.3},
      Case{"logits", "filtered_k0_p0.0001", 0, 1e-4}, Case{"logits", "filtered_k10_p0.8", 10, 0.8},
      Case{"logits", "filtered_k20_p0.95", 20, 0.95},
      Case{"logits", "filtered_k3_p0.999", 3, 0.999}, Case{"tie_logits", "tie_filtered_k1", 1, 1},
      Case{"tie_logits", "tie_filtered_k3", 3, 1});
  INFO(c.name);
  const auto logits_BV = golden_tensor(str_cat("sampling/", c.input, ".npy"));
  CHECK(torch::equal(sample_all(logits_BV, {.top_k = c.top_k, .top_p = c.top_p}).filtered_BV,
                     golden_tensor(str_cat("sampling/", c.name, ".npy"))));
}

TEST_CASE("sample token: filtered logits of the official VAR", "[kernels][golden]") {
  struct Case {
    const char* name;
    int64_t top_k;
    double top_p;  // 1 = off, where the official code says 0
  };
  const Case c =
      GENERATE(Case{"k0_p0", 0, 1}, Case{"k1_p0", 1, 1}, Case{"k5_p0", 5, 1},
               Case{"k0_p0.9", 0, 0.9}, Case{"k0_p0.3", 0, 0.3}, Case{"k0_p1", 0, 1},
               Case{"k10_p0.8", 10, 0.8}, Case{"k20_p0.95", 20, 0.95}, Case{"k3_p0.999", 3, 0.999});
  CAPTURE(c.name);
  const auto logits_BV = golden_tensor("sampling/var_logits.npy").flatten(0, 1);
  const auto sampled = sample_all(logits_BV, {.top_k = c.top_k, .top_p = c.top_p});
  const auto expected = golden_tensor(std::string("sampling/var_filtered_") + c.name + ".npy");
  CHECK(sampled.filtered_BV.equal(expected.flatten(0, 1)));
}

TEST_CASE("sample token: probabilities of the official code", "[kernels][golden]") {
  struct Case {
    const char* name;
    TokenFilter filter;
  };
  const Case c = GENERATE(Case{"t1_k0_p1", {}},
                          Case{"t0.7_k10_p0.8", {.temperature = 0.7, .top_k = 10, .top_p = 0.8}},
                          Case{"t2_k0_p0.9", {.temperature = 2, .top_p = 0.9}},
                          Case{"t0_k5_p1", {.temperature = 0, .top_k = 5}});
  INFO(c.name);
  const auto logits_BV = golden_tensor("sampling/logits.npy");
  CHECK_THAT(
      sample_all(logits_BV, c.filter).probability_BV,
      test::AllClose(golden_tensor(str_cat("sampling/probs_", c.name, ".npy")), {1e-6, 1e-5}));
  TokenSampler sampler(logits_BV.size(1), kernels::best_cpu_isa());
  TokenFilter greedy = c.filter;
  greedy.is_greedy = true;
  const auto expected = golden_tensor(str_cat("sampling/argmax_", c.name, ".npy"));
  for (int64_t b = 0; b < logits_BV.size(0); ++b) {
    CHECK(sampler.sample(row_of(logits_BV, b), {}, 1, greedy, 0) ==
          expected.view(-1)[b].item<int64_t>());
  }
}

TEST_CASE("sample token: a large vocabulary, against sorting all of it", "[kernels]") {
  torch::manual_seed(0);
  const int64_t vocab_size = 5000;
  const float spread = GENERATE(0.01f, 1.0f, 8.0f, 100.0f);
  const auto logits_BV = (torch::randn({1, vocab_size}) * spread).contiguous();
  const auto [sorted, order] = at::sort(logits_BV[0], /*dim=*/0, /*descending=*/true);
  for (const int64_t top_k : {0, 1, 7, 2000, 4999}) {
    for (const double top_p : {0.1, 0.9, 1.0}) {
      auto kept = torch::ones({vocab_size}, torch::kBool);
      if (top_k > 0) kept = kept.logical_and(sorted >= sorted[top_k - 1]);
      const auto probability = torch::where(kept, sorted, -INFINITY).to(torch::kDouble).softmax(0);
      if (top_p < 1) kept = kept.logical_and(probability.cumsum(0) - probability <= top_p);
      const auto expected = torch::zeros({vocab_size}, torch::kBool).scatter(0, order, kept);
      INFO("spread " << spread << " top_k " << top_k << " top_p " << top_p);
      const auto filtered = sample_all(logits_BV, {.top_k = top_k, .top_p = top_p}).filtered_BV[0];
      // A token whose neighbours' sum is p to the last digits may fall on either side.
      CHECK((filtered.isfinite() != expected).sum().item<int64_t>() <= (top_p < 1 ? 1 : 0));
    }
  }
}

TEST_CASE("sample token: guidance and draws in proportion", "[kernels]") {
  torch::manual_seed(1);
  const auto logits_BV = torch::randn({2, 40});
  TokenSampler sampler(40, kernels::best_cpu_isa());
  std::vector<double> counts(40);
  const int num_draws = 40000;
  for (int i = 0; i < num_draws; ++i) {
    Rng rng(5, Purpose::kSampling, 0, i);
    ++counts[sampler.sample(row_of(logits_BV, 0), row_of(logits_BV, 1), 1.5, {.temperature = 0.8},
                            rng.uniform())];
  }
  const auto guided = logits_BV[1] + (logits_BV[0] - logits_BV[1]) * 1.5;
  const auto expected = (guided / 0.8).softmax(0).to(torch::kDouble);
  const auto share = torch::tensor(counts, torch::kDouble) / num_draws;
  CHECK_THAT(share, test::AllClose(expected, {0.01, 0}));
  CHECK(sampler.sample(row_of(logits_BV, 0), {}, 1, {}, 0.0) == 0);
  CHECK(sampler.sample(row_of(logits_BV, 0), {}, 1, {}, 1 - 1e-16) == 39);
}

TEST_CASE("sample token: rows at once by LibTorch, the same tokens", "[kernels]") {
  const TokenFilter filter =
      GENERATE(TokenFilter{}, TokenFilter{.is_greedy = true}, TokenFilter{.top_k = 7},
               TokenFilter{.top_p = 0.6}, TokenFilter{.top_k = 900, .top_p = 0.96},
               TokenFilter{.temperature = 0.7, .top_k = 2000, .top_p = 0.9});
  const bool is_guided = GENERATE(false, true);
  CAPTURE(filter.temperature, filter.top_k, filter.top_p, filter.is_greedy, is_guided);
  torch::manual_seed(3);
  constexpr int64_t kRows = 64, kVocab = 4096;
  auto logits_RV = 3 * torch::randn({kRows, kVocab});
  logits_RV.slice(1, 0, 40) = 5;  // equal ones
  const auto null_RV = is_guided ? torch::randn({kRows, kVocab}) : torch::Tensor();
  const auto uniform_R = torch::rand({kRows}, torch::kDouble);
  const auto token_R = kernels::sample_tokens(logits_RV, null_RV, 2.5, filter, uniform_R);
  TokenSampler sampler(kVocab, kernels::best_cpu_isa());
  for (int64_t row = 0; row < kRows; ++row) {
    const int64_t expected = sampler.sample(
        row_of(logits_RV, row), is_guided ? row_of(null_RV, row) : std::span<const float>(), 2.5,
        filter, uniform_R[row].item<double>());
    CAPTURE(row);
    CHECK(token_R[row].item<int64_t>() == expected);
  }
}

TEST_CASE("sample token: logits that are no numbers are refused", "[kernels]") {
  for (const float bad : {NAN, INFINITY}) {
    for (const int64_t at : {3, 33}) {
      auto logits_BV = torch::zeros({1, 37});
      logits_BV[0][at] = bad;
      TokenSampler sampler(37, kernels::best_cpu_isa());
      CHECK(test::error_of([&] {
              sampler.sample(row_of(logits_BV, 0), {}, 1, {}, 0.5);
            }).find("not finite") != std::string::npos);
      CHECK(test::error_of([&] {
              kernels::sample_tokens(logits_BV, {}, 1, {}, torch::full({1}, 0.5, torch::kDouble));
            }).find("not finite") != std::string::npos);
    }
  }
}

}  // namespace vgen
