// Class consistency: counted by hand on six pictures.

#include "vgen/eval/class_consistency.h"

#include <catch2/catch.hpp>
#include <filesystem>

#include "support/pictures.h"
#include "support/support.h"
#include "vgen/core/strings.h"
#include "vgen/data/image.h"

namespace vgen::eval {
namespace {

using Catch::Contains;
using test::error_of;
namespace fs = std::filesystem;

/// Pictures of one grey value; classes are dark and light.
class GreyWorld {
 public:
  GreyWorld() {
    write("real/train/dark/a.png", 10);
    write("real/train/dark/b.png", 60);
    write("real/train/light/a.png", 200);
    write("real/val/dark/a.png", 20);
    write("real/val/light/a.png", 120);  // nearer to 60 than to 200
    write("samples/000000.png", 60);     // a copy
    write("samples/000001.png", 100);
    write("samples/000002.png", 190);
    write("samples/000003.png", 50);
    summary({{0, "000000.png"}, {0, "000001.png"}, {1, "000002.png"}, {1, "000003.png"}});
  }

  void write(const std::string& name, uint8_t grey, int64_t side = 8) const {
    test::write_picture(dir_ / name,
                        {.width = side,
                         .height = side,
                         .rgb = data::Pixels(static_cast<size_t>(side * side * 3), grey)});
  }
  void summary(const std::vector<std::pair<int64_t, std::string>>& images) const {
    std::string json = "{\"images\": [";
    for (const auto& [label, file] : images) {
      json += json.ends_with('[') ? "" : ", ";
      json += str_cat("{\"class_id\": ", label, ", \"file\": \"", file, "\"}");
    }
    test::write_file(dir_ / "samples/samples.json", json + "]}");
  }
  ConsistencyResult measure() const {
    return class_consistency({.samples = dir_ / "samples",
                              .train = {.path = dir_ / "real", .split = "train"},
                              .val = {.path = dir_ / "real", .split = "val"}});
  }
  std::string error() const {
    return error_of([&] { measure(); });
  }
  std::string path(const std::string& name) const { return dir_ / name; }

 private:
  test::TempDir dir_;
};

TEST_CASE("class consistency: the nearest training image decides", "[eval]") {
  const GreyWorld world;
  const ConsistencyResult result = world.measure();
  CHECK(result.samples == 4);
  CHECK(result.consistent == 3);
  CHECK(result.copies == 1);
  CHECK(result.val_images == 2);
  CHECK(result.val_correct == 1);
  REQUIRE(result.classes.size() == 2);
  CHECK(result.classes[0].consistent == 2);
  CHECK(result.classes[1].samples == 2);
  CHECK(result.classes[1].consistent == 1);
  CHECK_THAT(format_result(result),
             Contains("75.0 % of 4 samples") && Contains("50.0 % of 2 real"));
  const io::Json json = result_json(result);
  CHECK(json.get_float("class_consistency") == 0.75);
  CHECK(json.get_float("classifier_accuracy") == 0.5);
}

TEST_CASE("class consistency: real images come at the size of the samples", "[eval]") {
  const GreyWorld world;
  world.write("real/train/light/a.png", 200, 16);
  CHECK(world.measure().consistent == 3);
}

TEST_CASE("class consistency: what cannot be measured is refused", "[eval]") {
  const GreyWorld world;
  world.summary({{2, "000000.png"}});
  CHECK_THAT(world.error(), Contains("class_id 2") && Contains("0 to 1"));
  world.summary({{0, "../real/val/dark/a.png"}});
  CHECK_THAT(world.error(), Contains("leads out of the folder"));
  world.summary({{0, "000009.png"}});
  CHECK_THAT(world.error(), Contains("000009.png"));
  world.summary({});
  CHECK_THAT(world.error(), Contains("no images"));
  world.write("samples/000001.png", 1, 4);
  world.summary({{0, "000000.png"}, {0, "000001.png"}});
  CHECK_THAT(world.error(), Contains("000001.png") && Contains("4 x 4"));
  test::write_file(world.path("samples/000000.png"), "no picture");
  CHECK_THAT(world.error(), Contains("000000.png") && Contains("not an image"));
  fs::remove(world.path("samples/samples.json"));
  CHECK_THAT(world.error(), Contains("samples.json"));
}

}  // namespace
}  // namespace vgen::eval
