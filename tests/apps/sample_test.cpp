// `vgen sample` as a user runs it, with small models.

#include <algorithm>
#include <catch2/catch.hpp>
#include <filesystem>

#include "support/process.h"
#include "support/support.h"

namespace vgen {

using Catch::Matchers::Contains;
using test::golden;
using test::run_vgen;
using test::vgen_error;
namespace fs = std::filesystem;

namespace {

using Arguments = std::vector<std::string>;

/// A GPT of 128 codes on 6 x 6 and a tokenizer with as many.
Arguments sample(const Arguments& more,
                 const std::string& tokenizer = golden("vq16/ckpt.safetensors")) {
  Arguments arguments = {
      "sample", golden("gpt_c2i/ckpt.safetensors"), "--n-head", "2", "--tokenizer", tokenizer};
  const bool has_size = std::find(more.begin(), more.end(), "--image-size") != more.end();
  if (!has_size) arguments.insert(arguments.end(), {"--image-size", "96"});
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

TEST_CASE("vgen sample: pictures, grid, codes and a summary", "[apps]") {
  const test::TempDir dir;
  const auto result = run_vgen(sample({"--class-id", "3,7", "--count", "2", "--out", dir / "a",
                                       "--precision", "fp32", "--seed", "5"}));
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  CHECK_THAT(result.out, Contains("4 images") && Contains("tokens/s"));
  CHECK(names_in(dir / "a") == std::vector<std::string>{"000000.png", "000001.png", "000002.png",
                                                        "000003.png", "codes.npy", "grid.png",
                                                        "samples.json"});
  const std::string png = test::read_file(dir / "a/000002.png");
  CHECK_THAT(png, Contains("tEXtparameters") && Contains("\"class_id\":7") &&
                      Contains("\"seed\":5") && Contains("\"cfg_scale\":4"));
  CHECK_THAT(test::read_file(dir / "a/samples.json"),
             Contains("\"class_id\": 3") && Contains("\"file\": \"000003.png\""));

  // The same images whatever the batch and the number of threads.
  REQUIRE(run_vgen(sample({"--class-id", "3,7", "--count", "2", "--out", dir / "b", "--precision",
                           "fp32", "--seed", "5", "--batch-size", "1", "--threads", "1"}))
              .exit_code == 0);
  CHECK(test::read_file(dir / "a/codes.npy") == test::read_file(dir / "b/codes.npy"));
  // Older results are kept unless they are to be replaced.
  CHECK_THAT(vgen_error(sample({"--class-id", "1", "--out", dir / "a"})), Contains("use --force"));
  CHECK(run_vgen(sample({"--class-id", "1", "--out", dir / "a", "--force"})).exit_code == 0);
  CHECK(names_in(dir / "a") ==
        std::vector<std::string>{"000000.png", "codes.npy", "grid.png", "samples.json"});
}

TEST_CASE("vgen sample: images for FID, shared by processes, resumed", "[apps]") {
  const test::TempDir dir;
  const auto fid = [&](const std::string& npz, const Arguments& more,
                       const Arguments& environment = {}) {
    Arguments arguments = {"--fid", "70",          "--npz", npz,       "--eval-size",
                           "8",     "--cfg-scale", "1.5",   "--top-k", "0"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_vgen(sample(arguments), environment);
  };
  REQUIRE(fid(dir / "one.npz", {"--batch-size", "16"}).exit_code == 0);
  CHECK_FALSE(fs::exists(dir / "one.npz.parts"));
  // The second of two processes has the last 6 images, and cannot know those of the first.
  REQUIRE(fid(dir / "two.npz", {}, {"RANK=1", "WORLD_SIZE=2"}).exit_code == 0);
  CHECK_FALSE(fs::exists(dir / "two.npz"));
  CHECK(names_in(dir / "two.npz.parts") ==
        std::vector<std::string>{"part_000001.npy", "settings.json"});
  // Other settings would mix images of two kinds.
  CHECK_THAT(fid(dir / "two.npz", {"--seed", "1"}).err,
             Contains("parts drawn with other settings are there"));
  // Going on, now as a single process: only what is missing is drawn, and the file is the same.
  const auto last = fid(dir / "two.npz", {"--batch-size", "64"});
  REQUIRE(last.exit_code == 0);
  CHECK(test::read_file(dir / "one.npz") == test::read_file(dir / "two.npz"));
  CHECK_THAT(fid(dir / "one.npz", {}).err, Contains("is there already"));
}

TEST_CASE("vgen sample: bad input", "[apps]") {
  const test::TempDir dir;
  const auto error_with = [&](const Arguments& more) {
    Arguments arguments = more;
    arguments.insert(arguments.end(), {"--out", dir / "out"});
    const std::string message = vgen_error(sample(arguments));
    CHECK_FALSE(fs::exists(dir / "out"));  // nothing is left behind
    return message;
  };
  CHECK(error_with({"--class-id", "10"}) == "class 10: the model has classes 0 to 9");
  CHECK_THAT(error_with({"--class-id", "otter"}), Contains("--class-names FILE"));
  CHECK(error_with({"--class-id", "1", "--top-k", "-1"}) ==
        "top-k -1: expected at least 0, 0 = off");
  CHECK(error_with({"--class-id", "1", "--top-p", "0"}) ==
        "top-p 0: expected above 0 and at most 1, 1 = off");
  CHECK_THAT(error_with({"--class-id", "1", "--top-p", "1.5"}), Contains("top-p 1.5"));
  CHECK(error_with({"--class-id", "1", "--cfg-scale", "-1"}) ==
        "cfg-scale -1: expected at least 0");
  CHECK_THAT(error_with({"--class-id", "1", "--temperature", "-2"}), Contains("temperature -2"));
  CHECK_THAT(error_with({"--class-id", "1", "--count", "0"}), Contains("count 0"));
  CHECK_THAT(error_with({"--class-id", "1", "--image-size", "97"}),
             Contains("image-size 97: expected a multiple of the tokenizer's step, 16"));
  CHECK_THAT(vgen_error(sample({"--class-id", "1", "--image-size", "12", "--out", dir / "out"},
                               golden("vq_ema/ckpt.pt"))),
             Contains("has a vocabulary of 128, but the codebook of"));
  CHECK(run_vgen(sample({"--out", dir / "out"})).exit_code == 2);
  CHECK(run_vgen(sample({"--fid", "10"})).exit_code == 2);
}

}  // namespace vgen
