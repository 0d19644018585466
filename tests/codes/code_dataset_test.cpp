#include "vgen/codes/code_dataset.h"

#include <catch2/catch.hpp>
#include <filesystem>

#include "codes/codes_support.h"
#include "support/support.h"
#include "vgen/codes/official_layout.h"
#include "vgen/core/error.h"
#include "vgen/io/npy.h"

using namespace vgen;
using namespace vgen::codes;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;

namespace {

std::vector<int64_t> read(const CodeDataset& dataset, int64_t index, size_t set, int64_t crop) {
  std::vector<int64_t> code_T(static_cast<size_t>(dataset.info().num_tokens()));
  dataset.read(index, set, crop, code_T);
  return code_T;
}

std::vector<int64_t> slice(const std::vector<int64_t>& values, int64_t crop, int64_t tokens) {
  return {values.begin() + crop * tokens, values.begin() + (crop + 1) * tokens};
}

/// A square grid, as the official layout can tell.
CodeInfo square_info(const std::vector<std::string>& crops) {
  CodeInfo info = test::tiny_info();
  info.grid = {2, 2};
  info.crop_sets.clear();
  for (const auto& name : crops) info.crop_sets.push_back(parse_crop_set(name));
  return info;
}

void write_official(const std::string& path, const CodeInfo& info,
                    const std::vector<int64_t>& images) {
  const OfficialWriter writer(path, info);
  for (const int64_t image : images) {
    writer.write(image, image % 3, test::tiny_codes(info, image));
  }
}

}  // namespace

TEST_CASE("code dataset: images of all shards, crops of all sets", "[codes]") {
  const test::TempDir temp;
  const CodeInfo info = test::tiny_info();
  test::write_codes(temp.path(), info, 7, 3);
  const CodeDataset dataset = CodeDataset::open(temp.path());
  REQUIRE(dataset.size() == 7);
  CHECK(dataset.info().classes == info.classes);
  for (int64_t i = 0; i < 7; ++i) {
    CHECK(dataset.label(i) == i % 3);
    CHECK(dataset.image_index(i) == i);
    CHECK(dataset.name(i) == str_cat("c", i % 3, "/", i, ".png"));
    const auto codes = test::tiny_codes(info, i);
    for (int64_t crop = 0; crop < 2; ++crop) {
      CHECK(read(dataset, i, 0, crop) == slice(codes, crop, 6));
    }
    for (int64_t crop = 0; crop < 10; ++crop) {
      CHECK(read(dataset, i, 1, crop) == slice(codes, 2 + crop, 6));
    }
  }
}

TEST_CASE("code dataset: a broken shard is named, skipped or fatal", "[codes]") {
  const test::TempDir temp;
  test::write_codes(temp.path(), test::tiny_info(), 7, 3);
  const std::string shard = temp / "shard-00001.safetensors";
  const auto problem = GENERATE(as<std::string>(), "missing", "short", "tables", "foreign");
  CAPTURE(problem);
  const std::string good = test::read_file(shard);
  std::string expected;
  if (problem == "missing") {
    fs::remove(shard);
    expected = "is missing";
  } else if (problem == "short") {
    test::write_file(shard, good.substr(0, good.size() - 4));
    expected = "bytes, expected";
  } else if (problem == "tables") {
    test::flip_byte(shard, static_cast<int64_t>(good.size()) - 1);
    expected = "its tables have the checksum";
  } else {
    const test::TempDir other;
    CodeInfo info = test::tiny_info();
    info.tokenizer = "vqgan-fedcba9876543210";
    test::write_codes(other.path(), info, 7, 3);
    test::write_file(shard, test::read_file(other / "shard-00001.safetensors"));
    expected = "belongs to another extraction: tokenizer is";
  }
  const auto fails = [&] { CodeDataset::open(temp.path(), {.on_broken = "fail"}); };
  CHECK_THAT(test::error_of(fails), Contains("shard-00001.safetensors: ") && Contains(expected));

  const CodeDataset dataset = CodeDataset::open(temp.path());
  CHECK(dataset.size() == 7);  // the order of an epoch does not change
  CHECK(read(dataset, 2, 0, 0)[0] == 200);
  CHECK(read(dataset, 6, 0, 0)[0] == 600);
  CHECK_THAT(test::error_of([&] { read(dataset, 4, 0, 0); }), Contains(expected));
  CHECK_THAT(test::error_of([&] { dataset.label(3); }), Contains("shard-00001"));
}

TEST_CASE("code dataset: a damaged crop is named when it is read", "[codes]") {
  const test::TempDir temp;
  test::write_codes(temp.path(), test::tiny_info(), 3, 3);
  const std::string shard = temp / "shard-00000.safetensors";
  const std::string bytes = test::read_file(shard);
  std::string needle;  // codes of image 2, crop 1: 206, 207, ...
  for (const char code : {206, 207}) needle += {static_cast<char>(code), 0};
  const size_t at = bytes.find(needle);
  REQUIRE(at != std::string::npos);
  test::flip_byte(shard, static_cast<int64_t>(at));
  const CodeDataset dataset = CodeDataset::open(temp.path(), {.on_broken = "fail"});
  CHECK_NOTHROW(read(dataset, 2, 0, 0));
  CHECK_THAT(test::error_of([&] { read(dataset, 2, 0, 1); }),
             Contains("shard-00000.safetensors: image 2 (c2/2.png), crop 1: its codes have the "
                      "checksum"));
}

TEST_CASE("code dataset: nothing, half and empty", "[codes]") {
  const test::TempDir temp;
  const auto error = [](const std::string& path) {
    return test::error_of([&] { CodeDataset::open(path); });
  };
  CHECK_THAT(error(""), Contains("no codes: give the folder that `vgen extract` wrote"));
  CHECK_THAT(error(temp / "none"), Contains("no such folder"));
  CHECK_THAT(error(temp.path()), Contains("holds no codes; expected index.json"));
  test::write_codes(temp.path(), test::tiny_info(), 2, 1);
  fs::remove(temp / "index.json");
  CHECK_THAT(error(temp.path()),
             Contains("holds 2 shards but no index.json: the extraction is not finished"));
  test::write_codes(temp / "empty", test::tiny_info(), 0, 1);
  CHECK_THAT(error(temp / "empty"), Contains("holds no images"));
}

TEST_CASE("official layout: what NumPy wrote", "[codes][golden]") {
  const std::string path = test::project_path("tests/golden/official_codes/vq_flip_ten_crop");
  const CodeDataset dataset = CodeDataset::open(path);
  REQUIRE(dataset.size() == 3);
  CHECK(dataset.info().image_size == 32);
  CHECK(dataset.info().grid == std::vector<int64_t>{2, 2});
  REQUIRE(dataset.info().crop_sets.size() == 2);
  CHECK(dataset.info().crop_sets[0].name() == "ten_crop:1.1");
  CHECK(dataset.info().crop_sets[1].name() == "ten_crop:1.05");
  const std::vector<int64_t> numbers = {0, 1, 10};
  for (int64_t i = 0; i < 3; ++i) {  // code = 1000 k + 4 a + t, in the second set 500 more
    const int64_t k = numbers[static_cast<size_t>(i)];
    CHECK(dataset.image_index(i) == k);
    CHECK(dataset.name(i) == std::to_string(k));
    CHECK(dataset.label(i) == 7 * k);
    for (int64_t set = 0; set < 2; ++set) {
      for (int64_t a = 0; a < 10; ++a) {
        const int64_t first = 1000 * k + 4 * a + 500 * set;
        CHECK(read(dataset, i, static_cast<size_t>(set), a) ==
              std::vector<int64_t>{first, first + 1, first + 2, first + 3});
      }
    }
  }
  CHECK(CodeDataset::open(path + "/", {.second_set = "off"}).info().crop_sets.size() == 1);
}

TEST_CASE("official layout: what is written is read", "[codes]") {
  const test::TempDir temp;
  const std::string path = temp / "vq_flip_ten_crop";
  const CodeInfo info = square_info({"ten_crop:1.1", "ten_crop:1.05"});
  write_official(path, info, {5, 0, 123});
  const CodeDataset dataset = CodeDataset::open(path);
  REQUIRE(dataset.size() == 3);
  CHECK((dataset.info().crop_sets == info.crop_sets));
  CHECK(dataset.info().image_size == 32);
  const auto codes = test::tiny_codes(info, 123);
  CHECK(dataset.label(2) == 0);
  CHECK(read(dataset, 2, 0, 9) == slice(codes, 9, 4));
  CHECK(read(dataset, 2, 1, 0) == slice(codes, 10, 4));
  CHECK(io::read_npy(path + "/imagenet32_codes/5.npy").shape == std::vector<int64_t>{1, 10, 4});
  CHECK(io::read_npy(path + "_105/imagenet32_labels/5.npy").shape == std::vector<int64_t>{1});
  CHECK(OfficialWriter(path, info).has(5));
  fs::remove(path + "_105/imagenet32_labels/5.npy");
  CHECK_FALSE(OfficialWriter(path, info).has(5));

  // The folder itself, and one crop in an unremarkable place.
  CHECK(CodeDataset::open(path + "/imagenet32_codes").size() == 3);
  write_official(temp / "plain", square_info({"center"}), {0});
  CHECK(CodeDataset::open(temp / "plain").info().num_crops() == 1);
}

TEST_CASE("official layout: what its Python reader could not use is refused", "[codes]") {
  const test::TempDir temp;
  const auto error = [&](const std::string& name, const std::vector<std::string>& crops) {
    return test::error_of([&] { OfficialWriter(temp / name, square_info(crops)); });
  };
  CHECK_THAT(error("codes", {"center_flip"}), Contains("only if its path has 'flip' in it"));
  CHECK_THAT(error("flip_ten", {"ten_crop", "ten_crop:1.05"}), Contains("ends in ten_crop"));
  CHECK_THAT(error("flip_ten_crop", {"ten_crop", "ten_crop:1.05", "center"}),
             Contains("3 crop sets in the official layout"));
}

TEST_CASE("official layout: damage is named", "[codes]") {
  const test::TempDir temp;
  write_official(temp / "flip", square_info({"center_flip"}), {0, 1, 2});
  const std::string codes = temp / "flip/imagenet32_codes",
                    labels = temp / "flip/imagenet32_labels";
  const auto write = [&](const std::string& path, std::vector<int64_t> shape,
                         const std::vector<int64_t>& values) {
    io::write_npy(path, io::make_array<int64_t>(std::move(shape), values));
  };
  write(codes + "/1.npy", {1, 1, 4}, {1, 2, 3, 4});
  fs::remove(labels + "/1.npy");
  write(codes + "/2.npy", {1, 2, 4}, {1, 2, 3, -4, 5, 6, 7, 8});
  const CodeDataset dataset = CodeDataset::open(temp / "flip");
  const auto error = [&](int64_t index) {
    return test::error_of([&] { read(dataset, index, 0, 0); });
  };
  CHECK_THAT(error(1), Contains("1.npy: holds 1 crops of 4 codes, expected 2 of 4"));
  CHECK_THAT(error(2), Contains("2.npy: holds the code -4, expected at least 0"));
  CHECK_THAT(test::error_of([&] { dataset.label(1); }), Contains("labels/1.npy"));

  const auto open_error = [&] { return test::error_of([&] { CodeDataset::open(temp / "flip"); }); };
  write(codes + "/0.npy", {1, 2, 3}, {1, 2, 3, 4, 5, 6});
  CHECK_THAT(open_error(), Contains("has 3 codes per crop, expected a square number"));
  write(codes + "/0.npy", {1, 3, 4}, std::vector<int64_t>(12));
  CHECK_THAT(open_error(), Contains("has 3 crops of an image, expected 1, 2, 5 or 10"));
  write(codes + "/0.npy", {8}, std::vector<int64_t>(8));
  CHECK_THAT(open_error(), Contains("holds int64 [8], expected int64 [1, crops, tokens]"));
  test::write_file(codes + "/0.npy", "no array");
  CHECK_THAT(open_error(), Contains("0.npy"));
  fs::create_directory(temp / "flip/imagenet64_codes");
  CHECK_THAT(open_error(),
             Contains("holds several sets of codes, imagenet32_codes, imagenet64_codes"));
  CHECK_THAT(test::error_of([&] { CodeDataset::open(temp / "flip/imagenet64_codes"); }),
             Contains("imagenet64_labels: no such folder"));
  fs::create_directory(temp / "flip/imagenet64_labels");
  CHECK_THAT(test::error_of([&] { CodeDataset::open(temp / "flip/imagenet64_codes"); }),
             Contains("there are no codes"));
}
