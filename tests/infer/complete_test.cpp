// The GPT goes on from given codes: the upper part of an image. N codes of an image.

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "gpt/golden_gpt.h"
#include "support/golden.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/infer/gpt_generate.h"

namespace vgen {

using Catch::Contains;
using infer::GenerateRequest;
using infer::GenerateSettings;
using infer::GptEngine;
using test::golden_tensor;

namespace {

constexpr int64_t kCodes = 36, kGiven = 18;

std::unique_ptr<GptEngine> golden_engine(int64_t num_slots) {
  const auto state = io::load_state_dict(test::golden("gpt_c2i/ckpt.safetensors"));
  return make_gpt_engine(infer::gpt_weights(test::golden_config("gpt_c2i"), state),
                         {.num_slots = num_slots});
}

torch::Tensor greedy_codes(const std::string& cfg) {
  return golden_tensor("gpt_c2i/greedy_cfg" + cfg + ".npy").to(torch::kLong);
}

/// An image of each golden label; image b has row b of given_BN as its first codes.
std::vector<GenerateRequest> requests_with(const torch::Tensor& given_BN) {
  const auto label_B = golden_tensor("gpt_c2i/gen_labels.npy");
  std::vector<GenerateRequest> requests;
  for (int64_t b = 0; b < label_B.size(0); ++b) {
    requests.push_back({.image = static_cast<uint64_t>(b),
                        .prompt = {.label = label_B[b].item<int64_t>()},
                        .given_N = given_BN[b].contiguous()});
  }
  return requests;
}

GenerateSettings greedy(double cfg_scale) {
  return {.cfg_scale = cfg_scale, .filter = {.top_k = 1}};
}

}  // namespace

TEST_CASE("gpt completion: from the first half of a greedy image comes the rest",
          "[infer][golden]") {
  const std::string cfg = GENERATE("1", "4");
  CAPTURE(cfg);
  const auto engine = golden_engine(6);
  const auto golden_BN = greedy_codes(cfg);
  REQUIRE(golden_BN.size(1) == kCodes);
  for (const int64_t given : {kGiven, int64_t{1}, kCodes - 1, kCodes}) {
    CAPTURE(given);
    int64_t tokens = 0;
    const auto code_BN = generate(*engine, requests_with(golden_BN.slice(1, 0, given)),
                                  greedy(std::stod(cfg)), [&](int64_t count) { tokens += count; });
    CHECK_THAT(code_BN, test::AllClose(golden_BN, test::kExact));
    CHECK(tokens == golden_BN.numel());
  }
}

TEST_CASE("gpt completion: other codes are kept, and change what follows", "[infer][golden]") {
  const auto engine = golden_engine(6);
  const auto golden_BN = greedy_codes("4");
  const auto other_BG = (golden_BN.slice(1, 0, kGiven) + 5) % 128;
  const auto code_BN = generate(*engine, requests_with(other_BG), greedy(4));
  CHECK_THAT(code_BN.slice(1, 0, kGiven), test::AllClose(other_BG, test::kExact));
  for (int64_t b = 0; b < golden_BN.size(0); ++b) {
    CHECK_FALSE(torch::equal(code_BN[b].slice(0, kGiven), golden_BN[b].slice(0, kGiven)));
  }
  // Two at a time instead of all together, one with codes and one without.
  auto mixed = requests_with(other_BG);
  mixed[1].given_N = torch::Tensor();
  const auto mixed_BN = generate(*golden_engine(2), mixed, greedy(4));
  CHECK(torch::equal(mixed_BN[0], code_BN[0]));
  CHECK(torch::equal(mixed_BN[1], golden_BN[1]));
}

TEST_CASE("gpt completion: codes that cannot be given are refused", "[infer]") {
  const auto engine = golden_engine(6);
  const auto error_of = [&](const torch::Tensor& given_N) {
    auto requests = requests_with(torch::zeros({3, 1}, torch::kLong));
    requests[1].given_N = given_N;
    return test::error_of([&] { generate(*engine, requests, greedy(1)); });
  };
  const std::string expected = "given codes: expected at most 36, int64";
  CHECK(error_of(torch::zeros({kCodes + 1}, torch::kLong)) == expected);
  CHECK(error_of(torch::zeros({kGiven}, torch::kInt32)) == expected);
  CHECK(error_of(torch::zeros({2, 3}, torch::kLong)) == expected);
  CHECK(error_of(torch::zeros({kGiven, 2}, torch::kLong).select(1, 0)) == expected);  // strided
  CHECK_THAT(error_of(torch::full({kGiven}, 128, torch::kLong)),
             Contains("token 128: the vocabulary has 0 to 127"));
  CHECK_THAT(error_of(torch::full({kGiven}, -1, torch::kLong)), Contains("token -1"));
}

}  // namespace vgen
