// `vgen data` as a user runs it.

#include <catch2/catch.hpp>
#include <filesystem>
#include <map>
#include <regex>

#include "support/process.h"
#include "support/support.h"
#include "vgen/core/strings.h"

using namespace vgen;

namespace {

std::string little(uint32_t value, int bytes) {
  std::string text;
  for (int i = 0; i < bytes; ++i) text.push_back(static_cast<char>(value >> (8 * i)));
  return text;
}

/// An RGB TIFF of 20 x 20 whose pixels come last, as many writers order it, and with a tag that no
/// reader knows.
std::string tiff_file() {
  constexpr uint32_t kPixels = 20 * 20 * 3, kTags = 10;
  constexpr uint32_t kBits = 8 + 2 + 12 * kTags + 4, kData = kBits + 6;
  struct Tag {
    uint32_t id, type, count, value;
  };
  const Tag tags[kTags] = {{256, 3, 1, 20}, {257, 3, 1, 20}, {258, 3, 3, kBits},
                           {259, 3, 1, 1},  {262, 3, 1, 2},  {273, 4, 1, kData},
                           {277, 3, 1, 3},  {278, 3, 1, 20}, {279, 4, 1, kPixels},
                           {65000, 3, 1, 7}};
  std::string file = std::string("II*\0", 4) + little(8, 4) + little(kTags, 2);
  for (const Tag& tag : tags) {
    file += little(tag.id, 2) + little(tag.type, 2) + little(tag.count, 4) + little(tag.value, 4);
  }
  file += little(0, 4) + little(8, 2) + little(8, 2) + little(8, 2);
  return file + std::string(kPixels, '\x55');
}

}  // namespace

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

TEST_CASE("vgen data: what codecs say of damaged images does not reach the terminal", "[apps]") {
  const test::TempDir temp;
  std::filesystem::create_directories(temp / "set/a");
  std::map<std::string, std::string> files = {{"rows.tif", tiff_file()}};
  for (const std::string name :
       {"palette.png", "interlaced.png", "rgb16.png", "lossy.webp", "lossless_alpha.webp",
        "rgb.bmp", "palette.bmp", "lzw.tif", "rgb.ppm", "rgb_420.jpg"}) {
    files[name] = test::read_file(test::golden("pil_photos/" + name));
  }
  for (const auto& [name, bytes] : files) {
    test::write_file(temp / ("set/a/half-" + name), bytes.substr(0, bytes.size() / 2));
    test::write_file(temp / ("set/a/most-" + name), bytes.substr(0, bytes.size() - 30));
  }
  std::string changed = files["palette.png"];
  changed[changed.find("IDAT") + 20] ^= 1;
  test::write_file(temp / "set/a/changed.png", changed);
  test::write_file(temp / "set/a/whole.tif", files["rows.tif"]);

  const auto result = test::run_vgen({"data", "verify", temp / "set"});
  CHECK(result.exit_code == 1);
  const size_t broken = 2 * files.size() + 1;
  CHECK_THAT(result.out, Catch::Contains(str_cat(broken + 1, " images, 1 classes, ")) &&
                             Catch::Contains(str_cat(broken, " broken\n")));
  for (const auto& [name, bytes] : files) {
    CHECK_THAT(result.out, Catch::Contains("/a/half-" + name + ": ") &&
                               Catch::Contains("/a/most-" + name + ": "));
  }
  CHECK_THAT(result.out, Catch::Contains("/a/changed.png: PNG is damaged: IDAT: "));
  const std::regex ours(R"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [IW] .*|vgen: error: .*)");
  for (const std::string& line : split(result.err, '\n')) {
    INFO(line);
    CHECK((line.empty() || std::regex_match(line, ours)));
  }
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
             Catch::Contains("workers is 0: expected 1 to 1024 threads"));
  CHECK_THAT(test::vgen_error({"data", "bench", temp / "set", "--layout", "flat"}),
             Catch::Contains("a batch of 32 needs more than the 1 images"));
  CHECK_THAT(test::vgen_error({"data", "synth", temp / "set"}), Catch::Contains("exists already"));
  CHECK(test::run_vgen({"data"}).exit_code == 2);
  CHECK(test::run_vgen({"data", "synth"}).exit_code == 2);
}

TEST_CASE("vgen data: threads that the system refuses end the command with one line", "[apps]") {
  const test::TempDir temp;
  REQUIRE(test::run_vgen({"data", "synth", temp / "set", "--count", "10"}).exit_code == 0);
  for (const std::vector<std::string>& command : std::vector<std::vector<std::string>>{
           {"verify", temp / "set"}, {"bench", temp / "set", "--batch-size", "2"}}) {
    // Stacks of 64 MiB: the memory lasts for a part of the threads.
    std::vector<std::string> words = {"-c", "ulimit -s 65536; ulimit -v 40000000; exec \"$@\"",
                                      "bash", test::vgen_executable(), "data"};
    words.insert(words.end(), command.begin(), command.end());
    words.insert(words.end(), {"--workers", "1000"});
    const auto result = test::run_process("bash", words);
    INFO(result.err);
    CHECK(result.exit_code == 1);
    CHECK_THAT(result.err,
               Catch::Contains("vgen: error: ") && Catch::Contains("the system gave only ") &&
                   Catch::Contains(" of 1000 ") && Catch::Contains("ask for fewer workers"));
  }
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
