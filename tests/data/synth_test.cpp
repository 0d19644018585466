#include "vgen/data/synth.h"

#include <catch2/catch.hpp>
#include <filesystem>
#include <set>

#include "data/data_support.h"
#include "support/support.h"
#include "vgen/core/strings.h"
#include "vgen/data/dataset.h"
#include "vgen/data/detail/byte_source.h"
#include "vgen/data/detail/tar_reader.h"
#include "vgen/io/json.h"

namespace vgen::data {
namespace {

namespace fs = std::filesystem;
using test::TempDir;

SynthConfig small_config(const std::string& out) {
  return {.out = out, .count = 24, .classes = 12, .size = 32, .format = "png", .seed = 5};
}

/// (name, bytes) of every member.
test::Files members(const std::string& path) {
  const auto tar = detail::open_file_source(path);
  detail::TarReader reader(*tar, 0, tar->size(), path);
  test::Files files;
  while (const auto member = reader.next()) {
    std::string bytes(member->size, '\0');
    tar->read(member->offset, std::as_writable_bytes(std::span(bytes)));
    files.emplace_back(member->name, bytes);
  }
  return files;
}

/// All files below a folder, hidden ones too.
std::set<std::string> tree(const std::string& root) {
  std::set<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    names.insert(fs::relative(entry.path(), root).string());
  }
  return names;
}

}  // namespace

TEST_CASE("synth: a picture depends on its number and seed alone", "[data]") {
  const SynthConfig config{.size = 48};
  const SynthPicture first = synth_picture(config, 7);
  CHECK(first.image.rgb == synth_picture(config, 7).image.rgb);
  CHECK(first.image.rgb != synth_picture(config, 17).image.rgb);
  SynthConfig other = config;
  other.seed = 1;
  CHECK(first.image.rgb != synth_picture(other, 7).image.rgb);
  other = config;
  other.count = 5;
  other.workers = 9;
  other.format = "png";
  CHECK(first.image.rgb == synth_picture(other, 7).image.rgb);
  CHECK(first.label == 7);
  CHECK(first.class_name == "007-cross");
  CHECK_THAT(first.caption, Catch::StartsWith("a ") && Catch::Contains("cross") &&
                                Catch::Contains(" on a ") && Catch::EndsWith(" background"));
}

TEST_CASE("synth: classes tell shapes, then colours, then textures apart", "[data]") {
  for (const int64_t classes : {1, 10, 11, 100, 101, 1000}) {
    std::set<std::string> names;
    std::string last;
    const SynthConfig config{.classes = classes, .size = 8};
    for (int64_t label = 0; label < classes; ++label) {
      const SynthPicture picture = synth_picture(config, label + classes);
      CHECK(picture.label == label);
      CHECK(last < picture.class_name);  // byte order is the order of the labels
      last = picture.class_name;
      names.insert(picture.class_name.substr(4));
      const std::vector<std::string> words = split(picture.class_name.substr(4), '-');
      for (const std::string& word : words) CHECK_THAT(picture.caption, Catch::Contains(word));
    }
    CHECK(names.size() == static_cast<size_t>(classes));
  }
}

TEST_CASE("synth: the caption tells the truth about the pixels", "[data]") {
  // A plain red circle: at its centre red rules; in the corner farthest from it the background.
  const SynthConfig config{.classes = 1000, .size = 64};
  for (int64_t round = 0; round < 5; ++round) {
    const SynthPicture picture = synth_picture(config, round * 1000);
    REQUIRE(picture.class_name == "000-plain-red-circle");
    int64_t red = 0, sum_x = 0;
    for (int64_t y = 0; y < 64; ++y) {
      for (int64_t x = 0; x < 64; ++x) {
        const uint8_t* p = picture.image.row(y) + 3 * x;
        if (p[0] > 120 && p[1] < 90 && p[2] < 90) {
          ++red;
          sum_x += x;
        }
      }
    }
    INFO(picture.caption);
    CHECK(red > 3.14 * 100 * 0.6);          // radius 0.16 * 64 at least, times 0.9
    CHECK(red < 3.14 * 28.2 * 28.2 * 1.1);  // 0.44 * 64 at most
    const double center = static_cast<double>(sum_x) / static_cast<double>(red) / 64;
    if (picture.caption.find("left") != std::string::npos) CHECK(center < 0.5);
    if (picture.caption.find("right") != std::string::npos) CHECK(center > 0.5);
  }
}

TEST_CASE("synth: folder and tar are the same dataset, the same for any number of threads",
          "[data]") {
  const TempDir temp;
  SynthConfig config = small_config(temp / "set");
  const SynthReport report = write_synth(config);
  CHECK(report.images == 24);
  CHECK(report.files == 25);
  config.layout = "tar";
  config.out = temp / "set.tar";
  config.workers = 1;
  CHECK(write_synth(config).files == 1);
  config.out = temp / "again.tar";
  config.workers = 3;
  write_synth(config);
  CHECK(test::read_file(temp / "set.tar") == test::read_file(temp / "again.tar"));
  const Dataset folder = Dataset::open({.path = temp / "set"});
  const Dataset tar = Dataset::open({.path = temp / "set.tar"});
  REQUIRE(folder.size() == 24);
  REQUIRE(tar.size() == 24);
  CHECK(folder.classes() == tar.classes());
  CHECK(folder.classes().size() == 12);
  for (int64_t i = 0; i < 24; ++i) {
    CHECK(folder.name(i) == tar.name(i));
    const bool is_same_file = folder.read(i) == tar.read(i);
    CHECK(is_same_file);
    CHECK(folder.label(i) == tar.label(i));
  }
  const SynthPicture picture = synth_picture(config, 13);
  CHECK(folder.name(3) == picture.class_name + "/00000013.png");
  CHECK(decode_image(folder.read(3)).rgb == picture.image.rgb);
  const std::string captions = test::read_file(temp / "set/captions.jsonl");
  const auto lines = split(captions, '\n');
  const io::Json line = io::parse_json(lines.at(13));
  CHECK(line.get_string("image_path") == folder.name(3));
  CHECK(line.get_array("text").items.at(2).text == picture.caption);
  CHECK(tree(temp.path()).contains("set.tar"));
  for (const std::string& name : tree(temp.path())) CHECK_FALSE(name.ends_with(".tmp"));
}

TEST_CASE("synth: shards hold picture, json and caption, one sample after another", "[data]") {
  const TempDir temp;
  SynthConfig config = small_config(temp / "shards");
  config.layout = "shards";
  config.shard_size = 10;
  config.format = "jpeg";
  config.max_size = 40;
  CHECK(write_synth(config).files == 3);
  CHECK(tree(temp / "shards") == std::set<std::string>{"00000.tar", "00001.tar", "00002.tar"});
  const test::Files files = members(temp / "shards/00001.tar");
  REQUIRE(files.size() == 30);
  CHECK(members(temp / "shards/00002.tar").size() == 12);
  const SynthPicture picture = synth_picture(config, 12);
  CHECK(files[6].first == "000010002.jpg");
  CHECK(files[7].first == "000010002.json");
  CHECK(files[8] == std::pair<std::string, std::string>{"000010002.txt", picture.caption});
  const io::Json json = io::parse_json(files[7].second);
  CHECK(json.get_string("caption") == picture.caption);
  CHECK(json.get_int("label") == picture.label);
  CHECK(json.get_int("width") == picture.image.width);
  const Image decoded = decode_image(std::as_bytes(std::span(files[6].second)));
  CHECK(decoded.width == picture.image.width);
  CHECK(decoded.height == picture.image.height);
  CHECK(picture.image.width >= 32);
  CHECK(picture.image.width <= 40);
}

TEST_CASE("synth: what cannot be is told, and nothing is left behind", "[data]") {
  const TempDir temp;
  const auto error_with = [&](auto change) {
    SynthConfig config = small_config(temp / "set");
    change(config);
    return test::error_of([&] { write_synth(config); });
  };
  using Config = SynthConfig&;
  CHECK_THAT(error_with([](Config c) { c.classes = 0; }),
             Catch::Contains("classes is 0: expected"));
  CHECK_THAT(error_with([](Config c) { c.classes = 1001; }), Catch::Contains("1 to 1000"));
  CHECK_THAT(error_with([](Config c) { c.count = 11; }),
             Catch::Contains("count 11 is below classes 12"));
  CHECK_THAT(error_with([](Config c) { c.count = 0; }), Catch::Contains("count is 0"));
  CHECK_THAT(error_with([](Config c) { c.size = 4; }), Catch::Contains("size is 4"));
  CHECK_THAT(error_with([](Config c) { c.max_size = 16; }), Catch::Contains("max-size is 16"));
  CHECK_THAT(error_with([](Config c) { c.format = "gif"; }), Catch::Contains("jpeg or png"));
  CHECK_THAT(error_with([](Config c) { c.quality = 0; }), Catch::Contains("quality is 0"));
  CHECK_THAT(error_with([](Config c) { c.workers = 0; }), Catch::Contains("workers is 0"));
  CHECK_THAT(error_with([](Config c) { c.shard_size = 10001; }), Catch::Contains("1 to 10000"));
  CHECK_THAT(error_with([](Config c) { c.layout = "zip"; }), Catch::Contains("'zip'"));
  CHECK_THAT(error_with([](Config c) { c.layout = "tar"; }), Catch::Contains("ends with .tar"));
  CHECK_THAT(error_with([](Config c) { c.out += ".tar"; }), Catch::Contains("makes a folder"));
  CHECK_THAT(error_with([](Config c) { c.out = ""; }), Catch::Contains("no output"));
  CHECK_THAT(error_with([&](Config c) { c.out = temp / "no/such"; }),
             Catch::Contains("there is no folder"));
  CHECK(tree(temp.path()).empty());
  test::write_file(temp / "set", "mine");
  CHECK_THAT(error_with([](Config) {}), Catch::Contains("exists already"));
  CHECK(test::read_file(temp / "set") == "mine");
}

}  // namespace vgen::data
