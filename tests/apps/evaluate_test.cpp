// `vgen evaluate` and `vgen bench gpt-train` as a user runs them.

#include <catch2/catch.hpp>

#include "support/process.h"
#include "support/support.h"

namespace vgen {
namespace {

using Catch::Contains;
using test::golden;
using test::run_vgen;
using test::vgen_error;

TEST_CASE("vgen evaluate: sampled digits beside real ones, and what is refused", "[apps]") {
  const test::TempDir dir;
  // Weights without training: what is measured is low, but is measured.
  REQUIRE(run_vgen({"sample", golden("gpt_c2i/ckpt.safetensors"), "--n-head", "2", "--tokenizer",
                    golden("vq16/ckpt.safetensors"), "--image-size", "96", "--class-id", "0-4",
                    "--out", dir / "samples", "--precision", "fp32"})
              .exit_code == 0);
  const std::string digits = test::project_path("data/digits.tar.gz");
  const auto measure = [&](const std::string& out) {
    return run_vgen({"evaluate", "consistency", dir / "samples", digits, "--out", out});
  };
  const auto result = measure(dir / "result.json");
  INFO(result.err);
  CHECK(result.exit_code == 0);
  CHECK_THAT(result.out, Contains("of 5 samples") && Contains("of 297 real validation images"));
  const std::string json = test::read_file(dir / "result.json");
  CHECK_THAT(json, Contains("\"class_consistency\"") && Contains("\"val_images\": 297"));

  // Nothing is replaced unasked, and nothing is computed for a place that is not there.
  CHECK_THAT(measure(dir / "result.json").err, Contains("use --force"));
  CHECK(test::read_file(dir / "result.json") == json);
  CHECK_THAT(measure(dir / "no/such.json").err, Contains("no such folder"));
  CHECK_THAT(vgen_error({"evaluate", "consistency", dir / "nothing", digits}),
             Contains("nothing/samples.json"));
  test::write_file(dir / "samples/samples.json", "{\"images\": 3}");
  CHECK_THAT(vgen_error({"evaluate", "consistency", dir / "samples", digits}),
             Contains("samples.json") && Contains("'images'"));
  CHECK_THAT(vgen_error({"evaluate", "precision", golden("gpt_c2i/ckpt.safetensors"), "--n-head",
                         "2", dir / "samples"}),
             Contains("samples"));
}

TEST_CASE("vgen bench gpt-train: prints a row for each precision", "[apps]") {
  const auto result = run_vgen(
      {"bench", "gpt-train", "--batch", "1", "--tokens", "16", "--repeats", "1", "--threads", "1"});
  INFO(result.err);
  CHECK(result.exit_code == 0);
  CHECK_THAT(result.out, Contains("tokens/s") && Contains("fp32"));
}

}  // namespace
}  // namespace vgen
