// `vgen data` as a user runs it.

#include <catch2/catch.hpp>
#include <filesystem>

#include "support/process.h"
#include "support/support.h"
#include "vgen/core/strings.h"

using namespace vgen;

TEST_CASE("vgen data: synth, stats, verify and index work on each other's files", "[apps]") {
  const test::TempDir temp;
  const auto synth =
      test::run_vgen({"data", "synth", temp / "set", "--count", "20", "--size", "16"});
  INFO(synth.err);
  REQUIRE(synth.exit_code == 0);
  CHECK_THAT(synth.out, Catch::Contains("20 images, 10 classes"));
  CHECK_THAT(synth.err, Catch::Contains("20/20 images"));
  const auto stats = test::run_vgen({"data", "stats", temp / "set"});
  CHECK(stats.exit_code == 0);
  CHECK_THAT(stats.out, Catch::Contains("000-circle") && Catch::Contains("jpeg"));
  const auto index = test::run_vgen({"data", "index", temp / "set", "--json"});
  CHECK(index.exit_code == 0);
  CHECK_THAT(index.out, Catch::Contains("\"images\": 20"));
  const auto good = test::run_vgen({"data", "verify", temp / "set"});
  CHECK(good.exit_code == 0);
  CHECK_THAT(good.out, Catch::Contains("0 broken"));

  test::write_file(temp / "set/000-circle/00000010.jpg", "cut");
  const auto bad = test::run_vgen({"data", "verify", temp / "set", "--json"});
  CHECK(bad.exit_code == 1);
  CHECK_THAT(bad.out, Catch::Contains("\"num_broken\": 1") && Catch::Contains("00000010.jpg"));
  CHECK_THAT(bad.err, Catch::Contains("1 of 20 images are broken"));
}

TEST_CASE("vgen data: errors are one line", "[apps]") {
  const test::TempDir temp;
  std::filesystem::create_directories(temp / "empty");
  std::filesystem::create_directories(temp / "set/a");
  test::write_file(temp / "set/a/1.png", "x");
  std::filesystem::create_directories(temp / "set/b");
  CHECK_THAT(test::vgen_error({"data", "stats", temp / "empty"}),
             Catch::Contains("no class folders in it"));
  CHECK_THAT(test::vgen_error({"data", "index", temp / "set"}),
             Catch::Contains("class folder 'b' holds no image"));
  CHECK_THAT(test::vgen_error({"data", "verify", temp / "none"}),
             Catch::Contains("no such folder"));
  CHECK_THAT(test::vgen_error({"data", "verify", temp / "set", "--workers", "0"}),
             Catch::Contains("workers is 0: expected at least 1"));
  CHECK_THAT(test::vgen_error({"data", "bench", temp / "set", "--layout", "flat"}),
             Catch::Contains("a batch of 32 needs more than the 1 images"));
  CHECK_THAT(test::vgen_error({"data", "synth", temp / "set"}), Catch::Contains("exists already"));
  CHECK(test::run_vgen({"data"}).exit_code == 2);
  CHECK(test::run_vgen({"data", "synth"}).exit_code == 2);
}

TEST_CASE("vgen data: a synth that hits a file-size limit leaves nothing behind", "[apps]") {
  for (const std::string layout : {"folder", "tar", "shards"}) {
    const test::TempDir temp;
    const std::string out = temp / (layout == "tar" ? "set.tar" : "set");
    const auto result =
        test::run_process("bash", {"-c", "ulimit -f 20; exec \"$@\"", "bash",
                                   test::vgen_executable(), "data", "synth", out, "--layout",
                                   layout, "--count", "20", "--size", "256", "--format", "png"});
    INFO(result.err);
    CHECK(result.exit_code == 1);
    CHECK_THAT(result.err, Catch::Contains("vgen: error: ") && Catch::Contains("set") &&
                               Catch::Contains("File too large"));
    CHECK(std::filesystem::is_empty(temp.path()));
  }
}
