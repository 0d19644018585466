// PSNR and SSIM against scikit-image as LlamaGen calls it.

#include "vgen/eval/image_metrics.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <cmath>

#include "support/golden.h"
#include "support/support.h"
#include "vgen/core/strings.h"
#include "vgen/io/json.h"
#include "vgen/tensor/image.h"

using namespace vgen;
using test::golden_tensor;

TEST_CASE("image metrics: the values of the official scripts", "[eval][golden]") {
  const io::Json expected = io::parse_json(test::read_file(test::golden("metrics/expected.json")));
  const auto& pairs = expected.get_object("psnr_ssim").get_array("pairs").items;
  REQUIRE(pairs.size() == 7);
  for (size_t i = 0; i < pairs.size(); ++i) {
    const io::Json& pair = pairs[i];
    INFO(pair.get_string("name"));
    const std::string prefix = str_cat("metrics/pair", i, "_");
    const torch::Tensor copy_HW3 = golden_tensor(prefix + "rec_hwc_u8.npy");
    CHECK(to_uint8(golden_tensor(prefix + "decoder_chw_f32.npy").unsqueeze(0))[0].equal(copy_HW3));
    const torch::Tensor truth_3HW =
        golden_tensor(prefix + "gt_hwc_f32.npy").permute({2, 0, 1}).contiguous();
    const eval::ImageMetrics metrics = eval::compare_images(copy_HW3, truth_3HW);

    const double psnr = std::stod(pair.get_string("psnr_llamagen"));
    if (psnr > 150) {
      CHECK(metrics.psnr > 150);
      CHECK(std::isinf(metrics.psnr) == std::isinf(psnr));
    } else {
      CHECK(metrics.psnr == Approx(psnr).margin(1e-3).epsilon(0));
    }
    CHECK(metrics.ssim ==
          Approx(pair.get_float("ssim_llamagen_data_range_2")).margin(2e-6).epsilon(0));
    CHECK(metrics.ssim_data_range_1 ==
          Approx(pair.get_float("ssim_data_range_1")).margin(2e-6).epsilon(0));
  }
}

TEST_CASE("image metrics: wrong pictures are told", "[eval]") {
  const auto error = [](std::vector<int64_t> copy, std::vector<int64_t> truth) {
    return test::error_of(
        [&] { eval::compare_images(torch::zeros(copy, torch::kUInt8), torch::zeros(truth)); });
  };
  CHECK(error({6, 8, 3}, {3, 6, 8}) == "SSIM of images of 6 x 8: both sides must be at least 7");
  CHECK_THAT(error({8, 8, 3}, {3, 8, 9}), Catch::Contains("found [8, 8, 3] and [3, 8, 9]"));
}

TEST_CASE("code usage: distinct codes and perplexity", "[eval]") {
  eval::CodeUsage usage(8);
  CHECK(usage.usage() == 0);
  CHECK(usage.perplexity() == 0);
  usage.add(torch::tensor({{1, 1}, {7, 7}}));
  CHECK(usage.usage() == 0.25);
  CHECK(usage.perplexity() == Approx(2));
  usage.add(torch::tensor({0, 3}));
  usage.add(torch::tensor({0, 3}));
  CHECK(usage.num_distinct() == 4);
  CHECK(usage.perplexity() == Approx(4));
  usage.add(torch::full({1000}, 3));
  CHECK(usage.perplexity() < 1.1);
}
