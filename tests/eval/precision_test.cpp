// What `vgen evaluate precision` reports, against the training forward.

#include "vgen/eval/precision.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>

#include "codes/codes_support.h"
#include "gpt/golden_gpt.h"
#include "support/support.h"
#include "vgen/core/strings.h"

namespace vgen::eval {
namespace {

using Catch::Contains;

/// Codes for golden/gpt_c2i, 128 codes on 6 x 6: what test::tiny_codes gives.
codes::CodeInfo golden_info() {
  codes::CodeInfo info = test::tiny_info();
  info.codebook_size = 128;
  info.grid = {6, 6};
  info.crop_sets = {codes::parse_crop_set("center")};
  return info;
}

PrecisionConfig golden_settings(const std::string& codes) {
  PrecisionConfig config;
  config.checkpoint = test::golden("gpt_c2i/ckpt.safetensors");
  config.gpt.n_head = 2;
  config.gpt.block_size = 36;
  config.codes = codes;
  config.num_images = 5;
  config.batch_size = 2;
  return config;
}

TEST_CASE("precision: fp32's loss is the model's, int8 stays near", "[eval][golden]") {
  const test::TempDir dir;
  const codes::CodeInfo info = golden_info();
  test::write_codes(dir / "codes", info, 7, 3);
  const PrecisionResult result = compare_precisions(golden_settings(dir / "codes"));
  CHECK(result.images == 5);
  CHECK(result.tokens == 5 * 36);
  REQUIRE(result.rows.size() == 3);

  const torch::NoGradGuard no_grad;
  auto model = test::golden_gpt("gpt_c2i");
  std::vector<int64_t> codes, labels;
  for (int64_t i = 0; i < 5; ++i) {
    const auto image = test::tiny_codes(info, i);
    codes.insert(codes.end(), image.begin(), image.end());
    labels.push_back(i % 3);
  }
  const auto code_BN = torch::tensor(codes).view({5, 36});
  const auto logits = model(gpt::GptBatch{.code_BN = code_BN, .condition = torch::tensor(labels)});
  CHECK(result.rows[0].loss == Approx(gpt::gpt_loss(logits, code_BN).item<double>()).epsilon(1e-4));
  CHECK(result.logit_deviation == Approx(logits.std().item<double>()).epsilon(0.01));
  CHECK(result.rows[0].agreement == 1);
  CHECK(result.rows[0].logit_max == 0);
  for (const size_t i : {1, 2}) {
    const PrecisionRow& row = result.rows[i];
    INFO(row.precision);
    CHECK(row.agreement > 0.9);
    CHECK(row.logit_rms > 0);
    CHECK(row.logit_rms < 0.05 * result.logit_deviation);
    CHECK(row.logit_max >= row.logit_rms);
    CHECK(row.loss == Approx(result.rows[0].loss).epsilon(0.02));
  }
  CHECK(result.rows[1].logit_rms < result.rows[2].logit_rms);
  CHECK(result.rows[2].weight_bytes < result.rows[1].weight_bytes);
  CHECK_THAT(format_result(result), Contains("180 tokens of 5 images") && Contains("int8"));
}

TEST_CASE("precision: codes of another grid are refused", "[eval]") {
  const test::TempDir dir;
  codes::CodeInfo info = golden_info();
  info.grid = {4, 4};
  test::write_codes(dir / "codes", info, 3, 3);
  CHECK_THAT(test::error_of([&] { compare_precisions(golden_settings(dir / "codes")); }),
             Contains("[4, 4]") && Contains("[6, 6]"));
}

}  // namespace
}  // namespace vgen::eval
