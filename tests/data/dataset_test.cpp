#include "vgen/data/dataset.h"

#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <utility>

#include "data/data_support.h"
#include "support/support.h"
#include "vgen/core/strings.h"
#include "vgen/data/detail/archive.h"
#include "vgen/data/detail/byte_source.h"
#include "vgen/data/detail/index_cache.h"
#include "vgen/data/image.h"

namespace vgen::data {
namespace {

namespace fs = std::filesystem;
using test::Files;
using test::TempDir;

Dataset open(const std::string& path, const std::string& split = "",
             const std::string& layout = "auto", const std::string& labels = "") {
  return Dataset::open(
      {.path = path, .split = split, .layout = layout, .labels = labels, .index_cache = "off"});
}

std::string open_error(const std::string& path, const std::string& split = "",
                       const std::string& layout = "auto", const std::string& labels = "") {
  return test::error_of([&] { open(path, split, layout, labels); });
}

std::vector<std::string> names(const Dataset& dataset) {
  std::vector<std::string> out;
  for (int64_t i = 0; i < dataset.size(); ++i) out.push_back(dataset.name(i));
  return out;
}

std::vector<int64_t> labels(const Dataset& dataset) {
  std::vector<int64_t> out;
  for (int64_t i = 0; i < dataset.size(); ++i) out.push_back(dataset.label(i));
  return out;
}

std::string text(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

using Names = std::vector<std::string>;
using Labels = std::vector<int64_t>;

const Files kTwoClasses = {{"dog/b.png", "db"},     {"dog/a.PNG", "da"},    {"cat/x.jpeg", "cx"},
                           {"cat/sub/y.jpg", "cy"}, {"cat/notes.txt", "t"}, {"readme.md", "r"},
                           {".git/z.png", "z"}};
const Names kTwoClassNames = {"cat/x.jpeg", "cat/sub/y.jpg", "dog/a.PNG", "dog/b.png"};

}  // namespace

TEST_CASE("dataset: class folders, a tar and a tar.gz of them are the same samples", "[data]") {
  const TempDir temp;
  test::write_files(temp / "folder", kTwoClasses);
  test::write_file(temp / "plain.tar", test::tar_bytes(kTwoClasses));
  test::write_file(temp / "packed.tar.gz", test::tar_bytes(kTwoClasses, "gzip"));
  for (const char* path : {"folder", "plain.tar", "packed.tar.gz"}) {
    INFO(path);
    const Dataset dataset = open(temp / path);
    CHECK(names(dataset) == kTwoClassNames);
    CHECK(labels(dataset) == Labels{0, 0, 1, 1});
    CHECK(dataset.classes() == Names{"cat", "dog"});
    CHECK(text(dataset.read(1)) == "cy");
    CHECK(text(dataset.read(2)) == "da");
    CHECK(dataset.where(3) == temp / path + "/dog/b.png");
    CHECK_THAT(test::error_of([&] { dataset.read(4); }), Catch::Contains("sample 4 of 4"));
  }
}

TEST_CASE("dataset: classes are ranks in byte order, whatever the order in the tar", "[data]") {
  const TempDir temp;
  test::write_file(
      temp / "a.tar",
      test::tar_bytes(
          {{"./n9/1.jpg", ""}, {"./n10/1.jpg", ""}, {"./N2/1.jpg", ""}, {"./n10/0.jpg", ""}}));
  const Dataset dataset = open(temp / "a.tar");
  CHECK(dataset.classes() == Names{"N2", "n10", "n9"});
  CHECK(names(dataset) == Names{"N2/1.jpg", "n10/0.jpg", "n10/1.jpg", "n9/1.jpg"});
}

TEST_CASE("dataset: a nested ILSVRC tar is read in place", "[data]") {
  const TempDir temp;
  const std::string a = test::tar_bytes({{"n01_2.JPEG", "a2"}, {"n01_1.JPEG", "a1"}});
  const std::string b = test::tar_bytes({{"n02_1.JPEG", "b1"}});
  test::write_file(temp / "train.tar", test::tar_bytes({{"n02.tar", b}, {"n01.tar", a}}));
  const Dataset dataset = open(temp / "train.tar");
  CHECK(names(dataset) == Names{"n01/n01_1.JPEG", "n01/n01_2.JPEG", "n02/n02_1.JPEG"});
  CHECK(labels(dataset) == Labels{0, 0, 1});
  CHECK(text(dataset.read(0)) == "a1");
  CHECK(text(dataset.read(2)) == "b1");
}

TEST_CASE("dataset: a split is a folder of that name", "[data]") {
  const TempDir temp;
  const Files files = {{"train/a/1.png", "1"}, {"train/b/2.png", "2"}, {"val/a/3.png", "3"}};
  test::write_files(temp / "folder", files);
  test::write_file(temp / "a.tar", test::tar_bytes(files));
  Files wrapped;
  for (const auto& [name, bytes] : files) wrapped.emplace_back("imagenet/" + name, bytes);
  test::write_file(temp / "wrapped.tar", test::tar_bytes(wrapped));
  for (const char* path : {"folder", "a.tar", "wrapped.tar"}) {
    INFO(path);
    CHECK(open(temp / path, "train").classes() == Names{"a", "b"});
    CHECK(text(open(temp / path, "val").read(0)) == "3");
    CHECK_THAT(open_error(temp / path, "test"), Catch::Contains("val"));
    CHECK_THAT(open_error(temp / path),
               Catch::Contains("holds the splits 'train', 'val'; choose one with split: train"));
  }
  CHECK_THAT(open_error(temp / "a.tar", "test"),
             Catch::EndsWith("a.tar: no folder 'test' in it; there is 'train', 'val'"));
}

TEST_CASE("dataset: a flat folder has no labels, or those of a list", "[data]") {
  const TempDir temp;
  const Files files = {{"v_2.JPEG", "2"}, {"v_1.JPEG", "1"}, {"v_3.JPEG", "3"}};
  test::write_files(temp / "folder", files);
  test::write_file(temp / "flat.tar", test::tar_bytes(files));
  test::write_file(temp / "labels.txt", "# of the devkit\nv_1.JPEG n02\nv_2,n01 x\nv_3.JPEG n02\n");
  for (const char* path : {"folder", "flat.tar"}) {
    const Dataset plain = open(temp / path);
    CHECK(names(plain) == Names{"v_1.JPEG", "v_2.JPEG", "v_3.JPEG"});
    CHECK(labels(plain) == Labels{-1, -1, -1});
    CHECK(plain.classes().empty());
    const Dataset labelled = open(temp / path, "", "auto", temp / "labels.txt");
    CHECK(labels(labelled) == Labels{1, 0, 1});
    CHECK(labelled.classes() == Names{"n01", "n02"});
  }
  test::write_file(temp / "short.txt", "v_1.JPEG n02\n");
  CHECK_THAT(open_error(temp / "folder", "", "auto", temp / "short.txt"),
             Catch::Contains("'v_2.JPEG' is not in the label list"));
  test::write_file(temp / "bad.txt", "v_1.JPEG n02\nv_2.JPEG\n");
  CHECK_THAT(open_error(temp / "folder", "", "auto", temp / "bad.txt"),
             Catch::Contains("bad.txt:2: 'v_2.JPEG': expected a file name and a class name"));
  test::write_file(temp / "twice.txt", "v_1.JPEG n02\nv_1.JPEG n03\n");
  CHECK_THAT(open_error(temp / "folder", "", "auto", temp / "twice.txt"),
             Catch::Contains("twice.txt:2: 'v_1.JPEG' is listed twice"));
  CHECK_THAT(open_error(temp / "folder", "", "classes", temp / "labels.txt"),
             Catch::Contains("remove labels"));
}

TEST_CASE("dataset: layout flat takes class folders without labels", "[data]") {
  const TempDir temp;
  test::write_files(temp.path(), {{"b/1.png", ""}, {"a/2.png", ""}});
  CHECK(names(open(temp.path(), "", "flat")) == Names{"a/2.png", "b/1.png"});
  CHECK(labels(open(temp.path(), "", "flat")) == Labels{-1, -1});
}

TEST_CASE("dataset: what is missing or empty is told with what is there", "[data]") {
  const TempDir temp;
  test::write_files(temp.path(), {{"photos/cat/1.png", ""}, {"notes.txt", "x"}});
  CHECK_THAT(open_error(""), Catch::Contains("no dataset: set its path"));
  CHECK_THAT(open_error(temp / "fotos"),
             Catch::Contains("fotos: no such folder or file; ") && Catch::Contains("photos"));
  CHECK_THAT(open_error(temp / "x/y"), Catch::EndsWith("/x does not exist either"));
  CHECK_THAT(open_error(temp / "notes.txt"),
             Catch::Contains("is a file, but not named .tar or .tar.gz"));
  CHECK_THAT(open_error(temp / "photos", "train"),
             Catch::Contains("photos/train: no such folder; ") && Catch::Contains("holds cat"));
  fs::create_directories(temp / "empty");
  CHECK_THAT(open_error(temp / "empty"), Catch::Contains("no class folders in it"));
  test::write_files(temp / "texts", {{"a/1.txt", ""}, {"a/2.txt", ""}});
  CHECK_THAT(open_error(temp / "texts"),
             Catch::Contains("holds no image (2 other files were found)"));
  CHECK_THAT(open_error(temp / "empty", "", "flat"), Catch::Contains("holds no image (0 other"));
  CHECK_THAT(open_error(temp / "photos", "", "tree"),
             Catch::Contains("layout 'tree': expected auto, classes or flat"));
}

TEST_CASE("dataset: single files in the order given", "[data]") {
  const TempDir temp;
  test::write_files(temp.path(), {{"b.png", "bb"}, {"sub/a.png", "aa"}});
  const auto dataset = Dataset::of_files({temp / "sub/a.png", temp / "b.png", temp / "gone.png"});
  REQUIRE(dataset.size() == 3);
  CHECK(dataset.classes().empty());
  CHECK(labels(dataset) == Labels{-1, -1, -1});
  CHECK(dataset.where(1) == temp / "b.png");
  CHECK(text(dataset.read(0)) == "aa");
  CHECK(text(dataset.read(1)) == "bb");
  CHECK_THAT(test::error_of([&] { dataset.read(2); }), Catch::Contains(temp / "gone.png"));
  CHECK(test::error_of([] { Dataset::of_files({}); }) == "a dataset of no files");
  CHECK(Dataset::is_tar_name("a.TAR"));
  CHECK(Dataset::is_tar_name("a.tgz"));
  CHECK_FALSE(Dataset::is_tar_name("tar.png"));
}

TEST_CASE("dataset: a class folder without images is an error", "[data]") {
  const TempDir temp;
  const Files files = {{"a/1.png", ""}, {"b/notes.txt", ""}, {"c/", ""}};
  test::write_files(temp / "folder", files);
  test::write_file(temp / "a.tar", test::tar_bytes(files));
  for (const char* path : {"folder", "a.tar"}) {
    CHECK_THAT(open_error(temp / path),
               Catch::Contains("class folders 'b', 'c' hold no image; remove or fill it"));
  }
}

TEST_CASE("dataset: links are followed, a loop of links is an error", "[data]") {
  const TempDir temp;
  test::write_files(temp.path(), {{"store/1.png", "1"}, {"set/a/0.png", "0"}});
  fs::create_directory_symlink(temp / "store", temp / "set/b");
  CHECK(names(open(temp / "set")) == Names{"a/0.png", "b/1.png"});
  fs::create_directory_symlink(temp / "set", temp / "set/a/loop");
  CHECK_THAT(open_error(temp / "set"), Catch::Contains("is there a loop of links?"));
}

TEST_CASE("dataset: a pipe that is named like an image is broken, not a hang", "[data]") {
  const TempDir temp;
  test::write_files(temp.path(), {{"a/0.png", "0"}});
  REQUIRE(std::system(("mkfifo " + temp / "a/1.png").c_str()) == 0);
  const Dataset dataset = open(temp.path());
  CHECK_THAT(test::error_of([&] { dataset.read(1); }), Catch::Contains("is not a regular file"));
  fs::remove(temp / "a/0.png");
  CHECK_THAT(test::error_of([&] { dataset.read(0); }), Catch::Contains("No such file"));
}

TEST_CASE("dataset: damaged tars are told with place and remedy", "[data]") {
  const TempDir temp;
  const std::string tar = test::tar_bytes({{"a/1.png", std::string(2000, 'x')}, {"a/2.png", "2"}});
  const std::string path = temp / "bad.tar";
  const auto error_with = [&](const std::string& bytes) {
    test::write_file(path, bytes);
    return open_error(path);
  };
  std::string changed = tar;
  changed[2560 + 3] = '7';  // the second header
  CHECK_THAT(error_with(changed), Catch::Contains("bad.tar: entry 1 at byte 2560: checksum ") &&
                                      Catch::Contains(", expected "));
  CHECK_THAT(error_with(tar.substr(0, 1000)),
             Catch::Contains("entry 0 at byte 0: its 2000 bytes end beyond the tar: truncated"));
  CHECK_THAT(error_with(tar.substr(0, 3584)),
             Catch::Contains("the tar ends without its end mark: truncated"));
  CHECK_THAT(error_with(""), Catch::Contains("the tar ends without its end mark"));
  CHECK_THAT(error_with(std::string(4096, 'y')), Catch::Contains("checksum"));
  test::write_file(temp / "bad.tar.gz", test::tar_bytes(kTwoClasses, "gzip").substr(0, 150));
  CHECK_THAT(open_error(temp / "bad.tar.gz"),
             Catch::Contains("bad.tar.gz: ") && Catch::Contains("get it again"));
  test::write_file(temp / "page.tar.gz", "<html>not found</html>");
  CHECK_THAT(open_error(temp / "page.tar.gz"), Catch::Contains("entry 0 at byte 0"));
}

TEST_CASE("dataset: an inner tar that is damaged is named", "[data]") {
  const TempDir temp;
  const std::string inner = test::tar_bytes({{"1.JPEG", std::string(900, 'x')}});
  test::write_file(temp / "train.tar", test::tar_bytes({{"n01.tar", inner.substr(0, 512)}}));
  CHECK_THAT(open_error(temp / "train.tar"),
             Catch::Contains("train.tar: n01.tar: entry 0 at byte 0: its 900 bytes end beyond"));
}

TEST_CASE("dataset: unsafe names in a tar are left out and touch nothing", "[data]") {
  const TempDir temp;
  test::write_file(temp / "a.tar", test::tar_bytes({{"../evil/1.png", "x"},
                                                    {"a/../../2.png", "x"},
                                                    {"/abs/3.png", "3"},
                                                    {"abs/4.png", "4"}}));
  const Dataset dataset = open(temp / "a.tar");
  CHECK(names(dataset) == Names{"abs/3.png", "abs/4.png"});
  CHECK_FALSE(fs::exists(temp / "../evil"));
}

TEST_CASE("dataset: of a name that is stored twice the last one counts", "[data]") {
  const TempDir temp;
  test::write_file(temp / "a.tar", test::tar_bytes({{"a/1.png", "old"}, {"a/1.png", "new"}}));
  const Dataset dataset = open(temp / "a.tar");
  REQUIRE(dataset.size() == 1);
  CHECK(text(dataset.read(0)) == "new");
}

TEST_CASE("dataset: long names and other members of GNU and pax tars", "[data]") {
  const TempDir temp;
  const std::string name = "c/" + std::string(90, 'n') + "/" + std::string(90, 'n') + ".png";
  test::write_files(temp / "in", {{name, "long"}, {"c/2.png", "2"}});
  fs::create_symlink("2.png", temp / "in/c/3.png");
  for (const char* format : {"gnu", "pax", "ustar", "v7"}) {
    const std::string tar = temp / (std::string(format) + ".tar");
    const std::string skip = std::string(format) == "v7" ? " --exclude '*nnn*'" : "";
    REQUIRE(std::system(("tar -C " + temp / "in" + skip + " --format=" + format + " -cf " + tar +
                         " . 2>/dev/null")
                            .c_str()) == 0);
    INFO(format);
    const Dataset dataset = open(tar);  // "./c" is the only folder: a class
    CHECK(dataset.classes() == Names{"c"});
    CHECK(dataset.size() == (skip.empty() ? 2 : 1));
    CHECK(text(dataset.read(0)) == "2");
    if (skip.empty()) CHECK(dataset.name(1) == name);
  }
}

TEST_CASE("dataset: an index is cached, used, and dropped when the data changes", "[data]") {
  const TempDir temp;
  test::write_files(temp / "set", {{"a/1.png", "1"}, {"b/2.png", "2"}});
  test::write_file(temp / "set.tar", test::tar_bytes({{"a/1.png", "1"}, {"b/2.png", "2"}}));
  for (const char* path : {"set", "set.tar"}) {
    INFO(path);
    const std::string cache = temp / (std::string("cache-") + path);
    const DatasetConfig config{.path = temp / path, .index_cache = cache};
    CHECK(Dataset::open(config).size() == 2);
    REQUIRE(fs::exists(cache));
    const fs::path index = fs::directory_iterator(cache)->path();
    const std::string bytes = test::read_file(index.string());
    const auto written = fs::last_write_time(index);
    CHECK(Dataset::open(config).size() == 2);
    CHECK(fs::last_write_time(index) == written);  // read, not built again

    for (size_t i = 0; i < bytes.size(); i += 5) {  // a damaged index is built again
      std::string damaged = bytes;
      damaged[i] = static_cast<char>(damaged[i] + 1);
      test::write_file(index.string(), i % 2 ? damaged : bytes.substr(0, i));
      CHECK(names(Dataset::open(config)) == Names{"a/1.png", "b/2.png"});
    }
    CHECK(test::read_file(index.string()) == bytes);

    const Files more = {{"a/1.png", "1"}, {"a/3.png", "3"}, {"b/2.png", "2"}};
    if (path == std::string("set")) {
      test::write_files(temp / path, more);
    } else {
      test::write_file(temp / path, test::tar_bytes(more) + std::string(512, '\0'));
    }
    CHECK(names(Dataset::open(config)) == Names{"a/1.png", "a/3.png", "b/2.png"});
  }
}

TEST_CASE("dataset: an index that cannot be cached is only a warning", "[data]") {
  const TempDir temp;
  test::write_files(temp.path(), {{"set/a/1.png", "1"}, {"file", "in the way"}});
  CHECK(Dataset::open({.path = temp / "set", .index_cache = temp / "file"}).size() == 1);
}

std::string content(const detail::ByteSource& source) {
  std::string bytes(source.size(), '\0');
  source.read(0, std::as_writable_bytes(std::span(bytes)));
  return bytes;
}

TEST_CASE("dataset: a compressed tar too large for memory is unpacked once", "[data]") {
  const TempDir temp;
  const std::string tar = test::tar_bytes(kTwoClasses), packed = temp / "a.tar.gz";
  test::write_file(packed, test::tar_bytes(kTwoClasses, "gzip"));
  CHECK(content(*detail::open_compressed(packed, temp / "b.tar")) == tar);
  CHECK_FALSE(fs::exists(temp / "b.tar"));
  CHECK(content(*detail::open_compressed(packed, temp / "b.tar", 1000)) == tar);
  CHECK(fs::file_size(temp / "b.tar") == tar.size());
  test::write_file(packed, "gone");  // not looked at again
  CHECK(content(*detail::open_compressed(packed, temp / "b.tar", 1000)) == tar);
}

/// Environment variables that are put back.
class Variables {
 public:
  void set(const char* name, const std::string& value) {
    const char* before = std::getenv(name);
    before_.emplace_back(name,
                         before == nullptr ? std::nullopt : std::optional(std::string(before)));
    ::setenv(name, value.c_str(), /*overwrite=*/1);
  }
  ~Variables() {
    for (auto entry = before_.rbegin(); entry != before_.rend(); ++entry) {
      const auto& [name, value] = *entry;
      if (value) {
        ::setenv(name.c_str(), value->c_str(), /*overwrite=*/1);
      } else {
        ::unsetenv(name.c_str());
      }
    }
  }

 private:
  std::vector<std::pair<std::string, std::optional<std::string>>> before_;
};

TEST_CASE("dataset: with the cache off nothing of an unpacked tar is left", "[data]") {
  const TempDir temp;
  Variables variables;
  variables.set("XDG_CACHE_HOME", temp / "cache");
  const std::string tar = test::tar_bytes(kTwoClasses), packed = temp / "a.tar.gz";
  test::write_file(packed, test::tar_bytes(kTwoClasses, "gzip"));
  const auto place = [&](const std::string& cache) {
    return detail::unpacked_path({.path = packed, .index_cache = cache});
  };
  CHECK(place("off") == "");
  CHECK_FALSE(fs::exists(temp / "cache"));
  CHECK(place("auto").starts_with(temp / "cache/vgen/a.tar.gz."));
  CHECK(place(temp / "mine").starts_with(temp / "mine/a.tar.gz."));

  fs::create_directory(temp / "tmp");
  variables.set("TMPDIR", temp / "tmp");
  const auto files_before = test::files_in(temp.path());
  auto source = detail::open_compressed(packed, place("off"), 1000);
  CHECK(content(*source) == tar);
  CHECK(test::files_in(temp / "tmp").empty());
  CHECK(test::files_in(temp / "cache/vgen").empty());
  CHECK(test::files_in(temp.path()) == files_before);
  CHECK_THAT(test::error_of([&] {
               std::vector<std::byte> two(2);
               source->read(tar.size() - 1, two);
             }),
             Catch::Contains(temp / "tmp: ends at byte "));

  variables.set("TMPDIR", temp / "nowhere");
  CHECK_THAT(test::error_of([&] { detail::open_compressed(packed, "", 1000); }),
             Catch::Contains("no folder for temporary files") && Catch::Contains("set TMPDIR"));
}

TEST_CASE("dataset: the shipped digits and photos", "[data]") {
  const Dataset digits = open(test::project_path("data/digits.tar.gz"), "train");
  CHECK(digits.size() == 1500);
  CHECK(digits.classes().size() == 10);
  CHECK(decode_image(digits.read(1499)).width == 32);
  CHECK(open(test::project_path("data/digits.tar.gz"), "val").size() == 297);
  CHECK(open(test::project_path("data/photos")).size() == 8);
}

}  // namespace vgen::data
