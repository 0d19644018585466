// What `vgen data` does: index, verify, stats, bench.

#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <filesystem>

#include "data/data_support.h"
#include "support/support.h"
#include "vgen/core/error.h"
#include "vgen/core/strings.h"
#include "vgen/data/bench.h"
#include "vgen/data/detail/in_order.h"
#include "vgen/data/stats.h"
#include "vgen/data/verify.h"
#include "vgen/io/json.h"

namespace vgen::data {
namespace {

namespace fs = std::filesystem;
using test::TempDir;

std::string png(int64_t width, int64_t height, int seed) {
  return test::png_bytes(test::make_picture(width, height, seed));
}

/// Six images: three good, one cut, one text, one too small for min_side 4.
void write_mixed(const std::string& root) {
  const std::string good = test::jpeg_bytes(test::make_picture(40, 30, 1));
  test::write_files(root, {{"a/0.jpg", good},
                           {"a/1.jpg", good.substr(0, good.size() / 2)},
                           {"a/2.png", png(9, 8, 2)},
                           {"b/3.png", "hello there"},
                           {"b/4.png", png(3, 8, 3)},
                           {"b/5.png", png(8, 8, 4)},
                           {"b/notes.txt", "x"}});
}

}  // namespace

TEST_CASE("in order: every result once, in order, for any number of threads", "[data]") {
  for (const int64_t workers : {1, 2, 7}) {
    std::vector<int64_t> seen;
    detail::for_each_in_order(
        100, workers, [](int64_t i) { return i * i; },
        [&](int64_t i, int64_t square) {
          CHECK(square == i * i);
          seen.push_back(i);
        });
    REQUIRE(seen.size() == 100);
    CHECK(std::is_sorted(seen.begin(), seen.end()));
  }
  detail::for_each_in_order(
      0, 2, [](int64_t i) { return i; }, [](int64_t, int64_t) { FAIL(); });
}

TEST_CASE("in order: an error stops the threads, on either side", "[data]") {
  std::atomic<int64_t> made = 0;
  int64_t consumed = 0;
  const auto run = [&](int64_t bad_make, int64_t bad_consume) {
    consumed = 0;
    detail::for_each_in_order(
        1000000, 3,
        [&](int64_t i) {
          require(i != bad_make, ErrorCode::kInternal, "make ", i);
          ++made;
          return i;
        },
        [&](int64_t i, int64_t) {
          require(i != bad_consume, ErrorCode::kInternal, "consume ", i);
          ++consumed;
        });
  };
  CHECK(test::error_of([&] { run(5, -1); }) == "make 5");
  CHECK(consumed == 5);
  CHECK(test::error_of([&] { run(-1, 7); }) == "consume 7");
  CHECK(consumed == 7);
  CHECK(made < 1000);
}

TEST_CASE("verify: lists every broken image with its reason, for any number of threads", "[data]") {
  const TempDir temp;
  write_mixed(temp / "set");
  for (const int64_t workers : {1, 4}) {
    const VerifyReport report =
        verify({.dataset = {.path = temp / "set"}, .min_side = 4, .workers = workers});
    CHECK(report.images == 6);
    CHECK(report.classes == 2);
    CHECK(report.size_bytes > 1000);
    REQUIRE(report.broken.size() == 3);
    CHECK(report.broken[0].path == temp / "set/a/1.jpg");
    CHECK(report.broken[0].reason == "JPEG is truncated");
    CHECK(report.broken[1].path == temp / "set/b/3.png");
    CHECK_THAT(report.broken[1].reason, Catch::StartsWith("not an image: begins with 'hello"));
    CHECK_THAT(report.broken[2].reason, Catch::StartsWith("image of 3 x 8 is too small"));
    const std::string text = format_report(report);
    CHECK_THAT(text, Catch::Contains("6 images, 2 classes") && Catch::Contains("3 broken"));
    CHECK_THAT(text, Catch::Contains("  " + temp / "set/a/1.jpg: JPEG is truncated\n"));
    const io::Json json = io::parse_json(report_json(report));
    CHECK(json.get_int("num_broken") == 3);
    CHECK(json.get_array("broken").items[0].get_string("reason") == "JPEG is truncated");
  }
  CHECK(verify({.dataset = {.path = test::project_path("data/photos")}}).broken.empty());
  CHECK_THAT(test::error_of([] { verify({.dataset = {.path = "x"}, .workers = 0}); }),
             Catch::Contains("workers is 0: expected 1 to 1024 threads"));
}

TEST_CASE("verify: an image that vanished is broken", "[data]") {
  const TempDir temp;
  test::write_files(temp / "set", test::class_folders(1, 3));
  const DatasetConfig config{.path = temp / "set", .index_cache = temp / "cache"};
  refresh_index(config);
  fs::create_symlink("nowhere.png", temp / "set/c0/9.png");
  const VerifyReport report = verify({.dataset = config});
  REQUIRE(report.broken.size() == 1);
  CHECK_THAT(report.broken[0].reason, Catch::Contains("No such file"));
}

TEST_CASE("stats: counts, sizes, formats and moments", "[data]") {
  const TempDir temp;
  Image dark{.width = 2, .height = 1, .rgb = {0, 10, 20, 0, 30, 20}};
  Image light{.width = 200, .height = 100, .rgb = Pixels(60000, 255)};
  test::write_files(temp / "set", {{"a/0.png", test::png_bytes(dark)},
                                   {"b/1.png", test::png_bytes(dark)},
                                   {"b/2.png", "broken"},
                                   {"b/3.png", test::png_bytes(dark)}});
  for (const int64_t workers : {1, 3}) {
    const StatsReport report =
        collect_stats({.dataset = {.path = temp / "set"}, .workers = workers});
    CHECK(report.images == 4);
    CHECK(report.broken == 1);
    CHECK(report.classes == std::vector<std::pair<std::string, int64_t>>{{"a", 1}, {"b", 3}});
    CHECK(report.formats == std::map<std::string, int64_t>{{"png", 3}});
    CHECK(report.width.median == 2);
    CHECK(report.height.largest == 1);
    REQUIRE(report.has_pixels);
    CHECK(report.mean[0] == 0);
    CHECK(report.mean[1] == Approx(20.0 / 255));
    CHECK(report.deviation[1] == Approx(10.0 / 255));
    CHECK(report.mean[2] == Approx(20.0 / 255));
    CHECK(report.deviation[2] == Approx(0).margin(1e-9));
    CHECK_THAT(format_report(report), Catch::Contains("4 (1 broken)"));
  }
  test::write_file(temp / "set/a/4.jpg", test::jpeg_bytes(light));
  const StatsReport quick =
      collect_stats({.dataset = {.path = temp / "set"}, .headers_only = true});
  CHECK_FALSE(quick.has_pixels);
  CHECK(quick.formats == std::map<std::string, int64_t>{{"jpeg", 1}, {"png", 3}});
  CHECK(quick.width.largest == 200);
  CHECK(quick.short_sides.front() == std::pair<std::string, int64_t>{"below 64", 3});
  CHECK(quick.short_sides[1] == std::pair<std::string, int64_t>{"64..127", 1});
  const io::Json json = io::parse_json(report_json(quick));
  CHECK(json.get_object("classes").get_int("b") == 3);
  CHECK(json.find("mean") == nullptr);
}

TEST_CASE("index: is built anew and cached, whatever the size of the dataset", "[data]") {
  const TempDir temp;
  test::write_files(temp / "set", test::class_folders(2, 2));
  test::write_file(temp / "set/c0/readme.txt", "x");
  test::write_file(temp / "set.tar", test::tar_bytes(test::class_folders(3, 1)));
  const IndexReport folder = refresh_index({.path = temp / "set"});
  CHECK(folder.images == 4);
  CHECK(folder.classes == 2);
  CHECK(folder.ignored == 1);
  CHECK(folder.place == temp / "set.vgen-index");
  CHECK(fs::exists(folder.place));
  CHECK(refresh_index({.path = temp / "set.tar"}).place == temp / "set.tar.vgen-index");
  CHECK_THAT(format_report(folder, "set"), Catch::Contains("images   4\nclasses  2\n"));
  CHECK(io::parse_json(report_json(folder, "set")).get_int("images") == 4);

  // The cached index is what open() uses: a name in it that is gone still counts.
  const auto stamp = fs::last_write_time(temp / "set/c0");
  fs::remove(temp / "set/c0/0.png");
  fs::last_write_time(temp / "set/c0", stamp);
  CHECK(Dataset::open({.path = temp / "set"}).size() == 4);
  CHECK(refresh_index({.path = temp / "set"}).images == 3);
  CHECK(Dataset::open({.path = temp / "set"}).size() == 3);
}

TEST_CASE("bench: counts what the loader hands out", "[data]") {
  LoaderBenchConfig config{.batch_size = 4, .seconds = 0.05};
  config.data.train = {.path = test::project_path("data/photos"), .index_cache = "off"};
  config.data.image_size = 32;
  const LoaderBenchReport report = bench_loader(config);
  CHECK(report.images > 0);
  CHECK(report.images % 4 == 0);
  CHECK(report.broken == 0);
  CHECK(report.images_per_second == Approx(static_cast<double>(report.images) / report.seconds));
  CHECK_THAT(format_report(report),
             Catch::Contains(" images/s, ") && Catch::Contains(" ms of CPU each ("));
  CHECK(io::parse_json(report_json(report)).get_int("batch_size") == 4);
}

}  // namespace vgen::data
