#include "vgen/io/result_folder.h"

#include <catch2/catch.hpp>
#include <filesystem>
#include <set>

#include "support/support.h"
#include "vgen/core/error.h"

using namespace vgen;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;

namespace {

io::ResultFolder::Options options(bool may_replace) {
  return {
      .may_replace = may_replace, .last = "index.json", .is_result = [](const std::string& name) {
        return name == "index.json" || name.ends_with(".png");
      }};
}

void write(const io::ResultFolder& folder, const std::string& name, const std::string& text) {
  folder.write(name, std::as_bytes(std::span(text.data(), text.size())));
}

std::set<std::string> names_in(const std::string& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename());
  return names;
}

using Names = std::set<std::string>;

}  // namespace

TEST_CASE("result folder: nothing shows before commit, all of it after", "[io]") {
  const test::TempDir temp;
  const std::string path = temp / "deep/er/out";
  {
    io::ResultFolder folder(path, options(false));
    write(folder, "0.png", "picture");
    test::write_file(folder.file("index.json"), "{}");
    CHECK_FALSE(fs::exists(path + "/0.png"));
    folder.commit();
  }
  CHECK(names_in(path) == Names{"0.png", "index.json"});
  CHECK(test::read_file(path + "/0.png") == "picture");
}

TEST_CASE("result folder: without a commit nothing is left", "[io]") {
  const test::TempDir temp;
  {
    io::ResultFolder folder(temp / "out", options(false));
    write(folder, "0.png", "picture");
  }
  CHECK_FALSE(fs::exists(temp / "out"));
  fs::create_directory(temp / "out");  // one that was there stays
  { io::ResultFolder folder(temp / "out", options(false)); }
  CHECK(names_in(temp / "out").empty());
}

TEST_CASE("result folder: older results are replaced only when asked, and at commit", "[io]") {
  const test::TempDir out;
  test::write_file(out / "7.png", "old");
  test::write_file(out / "index.json", "old");
  fs::create_directory(out / ".partial-killed");
  CHECK_THAT(test::error_of([&] { io::ResultFolder folder(out.path(), options(false)); }),
             Contains("holds results already; use --force"));
  {
    io::ResultFolder folder(out.path(), options(true));
    write(folder, "0.png", "new");
  }
  CHECK(names_in(out.path()) == Names{".partial-killed", "7.png", "index.json"});
  io::ResultFolder folder(out.path(), options(true));
  write(folder, "0.png", "new");
  write(folder, "index.json", "new");
  folder.commit();
  CHECK(names_in(out.path()) == Names{"0.png", "index.json"});
  CHECK(test::read_file(out / "index.json") == "new");
}

TEST_CASE("result folder: what is no result is never touched", "[io]") {
  const test::TempDir out;
  test::write_file(out / "thesis.txt", "years");
  for (const bool may_replace : {false, true}) {
    CHECK_THAT(test::error_of([&] { io::ResultFolder folder(out.path(), options(may_replace)); }),
               Contains("holds other things than results, 'thesis.txt'"));
  }
  CHECK(names_in(out.path()) == Names{"thesis.txt"});
}

TEST_CASE("result folder: places that cannot be written are told", "[io]") {
  const test::TempDir temp;
  test::write_file(temp / "file", "");
  CHECK_THAT(test::error_of([&] { io::ResultFolder folder(temp / "file", options(true)); }),
             Contains("is not a folder"));
  CHECK_THAT(test::error_of([&] { io::ResultFolder folder(temp / "file/out", options(true)); }),
             Contains("file/out: "));
  CHECK_THAT(test::error_of([&] { io::ResultFolder folder("/proc/vgen/out", options(true)); }),
             Contains("/proc/vgen/out: cannot be made"));
}
