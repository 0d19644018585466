// vgen reconstruct as a user runs it; most of all what it refuses, and that nothing is harmed then.

#include <catch2/catch.hpp>
#include <filesystem>
#include <set>

#include "support/process.h"
#include "support/support.h"
#include "vgen/core/strings.h"

using namespace vgen;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;

namespace {

std::vector<std::string> words(std::vector<std::string> more) {
  std::vector<std::string> all = {"reconstruct", test::golden("vq_ema/ckpt.pt")};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

std::string photo() { return test::project_path("data/photos/chelsea/chelsea.jpg"); }

std::set<std::string> names_in(const std::string& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename());
  return names;
}

}  // namespace

TEST_CASE("vgen reconstruct: writes pictures, codes and measures", "[apps]") {
  const test::TempDir temp;
  const std::string out = temp / "out";
  const auto arguments =
      words({photo(), "--image-size", "32", "--out", out, "--threads", "1", "--device", "cpu"});
  const test::ProcessResult result = test::run_vgen(arguments);
  CAPTURE(result.err);
  REQUIRE(result.exit_code == 0);
  CHECK_THAT(result.out, Contains("PSNR") && Contains("SSIM") && Contains("images/s") &&
                             Contains("1 of 32 x 32 pixels"));
  const std::set<std::string> expected = {"000000.png", "codes.npy", "grid.png", "images.jsonl",
                                          "metrics.json"};
  CHECK(names_in(out) == expected);
  const std::string metrics = test::read_file(out + "/metrics.json");
  CHECK_THAT(metrics, Contains("\"psnr\": ") && Contains("\"ssim_data_range_1\": ") &&
                          Contains("\"fingerprint\": \"vqgan-"));

  // Again: refused, then replaced.
  CHECK_THAT(test::vgen_error(arguments), Contains("holds results already; use --force"));
  CHECK(test::read_file(out + "/metrics.json") == metrics);
  auto forced = arguments;
  forced.insert(forced.end(), {"--force", "--json", "--grid", "0", "--precision", "bf16"});
  const test::ProcessResult again = test::run_vgen(forced);
  REQUIRE(again.exit_code == 0);
  CHECK(again.out == test::read_file(out + "/metrics.json"));
  CHECK_THAT(again.out, Contains("\"precision\": \"bf16\""));
  CHECK_FALSE(fs::exists(out + "/grid.png"));

  // Nothing of a user's own is replaced, and without --out nothing is written.
  test::write_file(out + "/notes.txt", "mine");
  CHECK_THAT(test::vgen_error(forced), Contains("holds other things than results, 'notes.txt'"));
  CHECK(names_in(out).size() == 5);
  CHECK(test::run_vgen(words({photo(), "--image-size", "32"})).exit_code == 0);
  CHECK(names_in(temp.path()) == std::set<std::string>{"out"});
}

TEST_CASE("vgen reconstruct: impossible sizes", "[apps]") {
  const test::TempDir temp;
  const std::string vq16 = test::golden("vq16/ckpt.safetensors");
  CHECK_THAT(test::vgen_error(
                 {"reconstruct", vq16, photo(), "--image-size", "100", "--out", temp / "out"}),
             Contains("image size 100: ") && Contains("needs a multiple of 16 pixels, such as 96"));
  CHECK_THAT(test::vgen_error(words({photo(), "--image-size", "6"})),
             Contains("images of 6 pixels are too small to measure: SSIM needs at least 7"));
  CHECK_THAT(
      test::vgen_error(words({photo(), "--min-side", "5000", "--on-broken", "fail"})),
      Contains("chelsea.jpg: image of ") && Contains("is too small: expected at least 5000"));
  CHECK(names_in(temp.path()).empty());
}

TEST_CASE("vgen reconstruct: inputs that hold no images", "[apps]") {
  const test::TempDir temp;
  test::write_file(temp / "notes.txt", "hello");
  fs::create_directory(temp / "empty");
  CHECK_THAT(test::vgen_error(words({temp / "notes.txt", "--on-broken", "fail"})),
             Contains("notes.txt: not an image: begins with 'hello'"));
  CHECK_THAT(test::vgen_error(words({temp / "notes.txt"})), Contains("notes.txt"));
  CHECK_THAT(test::vgen_error(words({temp / "empty"})), Contains("/empty: "));
  CHECK_THAT(test::vgen_error(words({temp / "gone.png"})), Contains("no such file or folder"));
  const std::string digits = test::project_path("data/digits.tar.gz");
  CHECK_THAT(test::vgen_error(words({digits, "--split", "test"})),
             Contains("no folder 'test' in it; there is 'train', 'val'"));
  CHECK_THAT(test::vgen_error(words({photo(), "--split", "val"})),
             Contains("is a file, but a split ('val') is part of a folder or a tar"));
  test::write_file(temp / "cut.tar.gz", test::read_file(digits).substr(0, 5000));
  CHECK_THAT(test::vgen_error(words({temp / "cut.tar.gz"})), Contains("cut.tar.gz"));
}

TEST_CASE("vgen reconstruct: places and models that do not serve", "[apps]") {
  const test::TempDir temp;
  fs::create_directory(temp / "in");
  fs::copy_file(photo(), temp / "in/000000.png");  // named like a result
  CHECK_THAT(test::vgen_error(words({temp / "in", "--out", temp / "in", "--force"})),
             Contains("is an input, it cannot take the results too"));
  CHECK_THAT(test::vgen_error(words({photo(), "--out", "/proc/vgen"})),
             Contains("/proc/vgen: cannot be made"));
  CHECK_THAT(test::vgen_error({"reconstruct", temp / "gone", photo(), "--out", temp / "out"}),
             Contains("gone: no such file or folder; expected a run folder"));
  CHECK_THAT(test::vgen_error({"reconstruct", test::golden("gpt_c2i/ckpt.safetensors"), photo(),
                               "--out", temp / "out"}),
             Contains("not the weights of a VQGAN tokenizer"));
  CHECK(names_in(temp.path()) == std::set<std::string>{"in"});
  CHECK(names_in(temp / "in") == std::set<std::string>{"000000.png"});
  CHECK(test::run_vgen(words({photo(), "--workers", "0"})).exit_code == 2);
  CHECK(test::run_vgen(words({photo(), "--batch-size", "0"})).exit_code == 2);
  CHECK(test::run_vgen(words({photo(), "--precision", "int4"})).exit_code == 2);
  CHECK(test::run_vgen(words({})).exit_code == 2);
}
