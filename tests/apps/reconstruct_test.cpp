// vgen reconstruct as a user runs it; most of all what it refuses, and that nothing is harmed then.
// And vgen bench tokenizer.

#include <catch2/catch.hpp>
#include <filesystem>
#include <set>

#include "support/process.h"
#include "support/support.h"
#include "vgen/core/strings.h"

using namespace vgen;
using Catch::Matchers::Contains;
using Catch::Matchers::StartsWith;
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
  const std::string reason = temp / "notes.txt: not an image: begins with 'hello'; expected JPEG, ";
  CHECK_THAT(test::vgen_error(words({temp / "notes.txt"})), StartsWith(reason));
  test::write_file(temp / "more.txt", "bye");
  CHECK_THAT(test::vgen_error(words({temp / "notes.txt", temp / "more.txt"})),
             StartsWith("2 files: none of 2 images can be read; the first: " + reason));
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
}

TEST_CASE("vgen reconstruct, extract: a wrong command line is told in one line", "[apps]") {
  const std::string model = test::golden("vq_ema/ckpt.pt");
  const auto complaint = [](const std::vector<std::string>& arguments) {
    const test::ProcessResult result = test::run_vgen(arguments);
    CHECK(result.exit_code == 2);
    CHECK(result.out.empty());
    return result.err;
  };
  CHECK(complaint(words({photo(), "--workers", "0"})) ==
        "vgen: error: --workers: Value 0 not in range 1 to 1024; see `vgen reconstruct --help`\n");
  CHECK(complaint({"extract", model, photo(), "--out", "x", "--workers", "0"}) ==
        "vgen: error: --workers: Value 0 not in range 1 to 1024; see `vgen extract --help`\n");
  const std::vector<std::vector<std::string>> wrong = {words({photo(), "--batch-size", "0"}),
                                                       words({photo(), "--precision", "int4"}),
                                                       words({}),
                                                       {"data", "verify"},
                                                       {}};
  for (const auto& arguments : wrong) {
    CAPTURE(arguments);
    const std::string line = complaint(arguments);
    CHECK_THAT(line, StartsWith("vgen: error: ") && Contains("; see `vgen"));
    CHECK(line.find('\n') == line.size() - 1);
  }
}

TEST_CASE("vgen reconstruct: weights of LPIPS that are not there", "[apps]") {
  const test::TempDir temp;
  const std::string here = test::golden("vq_ema/ckpt.pt");
  const auto error = [&](const std::string& vgg, const std::string& lin) {
    return test::vgen_error(
        words({photo(), "--image-size", "32", "--lpips-vgg", vgg, "--lpips-lin", lin}));
  };
  const std::string help =
      ": no such file; LPIPS needs torchvision's VGG16 (vgg16-397923af.pth from ";
  CHECK_THAT(error(temp / "vgg16.pth", temp / "vgg.pth"), StartsWith(temp / "vgg16.pth" + help));
  CHECK_THAT(error(here, temp / "vgg.pth"), StartsWith(temp / "vgg.pth" + help));
  CHECK_THAT(error(here, here), Contains("have no tensor 'features.0.weight'"));
}

TEST_CASE("vgen bench tokenizer: the search for codes beside the plain formula", "[apps]") {
  const std::vector<std::string> arguments = {"bench",     "tokenizer", "--mode",       "search",
                                              "--batch",   "1,2",       "--image-size", "64",
                                              "--repeats", "1",         "--device",     "cpu"};
  const test::ProcessResult table = test::run_vgen(arguments);
  CAPTURE(table.err);
  REQUIRE(table.exit_code == 0);
  CHECK_THAT(table.out, Contains("nearest of 16384 codes of 8 channels, fp32; plain: "));
  CHECK_THAT(table.out, !Contains("GFLOP/s"));
  auto with_json = arguments;
  with_json.push_back("--json");
  const test::ProcessResult json = test::run_vgen(with_json);
  REQUIRE(json.exit_code == 0);
  CHECK_THAT(json.out, Contains("\"rows\": []") && Contains("\"rows\": 16,") &&
                           Contains("\"rows\": 32,") && Contains("\"dim\": 8,") &&
                           Contains("\"speedup\": ") && Contains("\"plain_peak_rss_mb\": "));
  size_t count = 0;
  const std::string same = "\"same_codes\": 1.0";  // no row has two codes that are nearly as near
  for (size_t at = 0; (at = json.out.find(same, at)) != std::string::npos; ++at) ++count;
  CHECK(count == 2);
}
