#include "vgen/codes/code_shard.h"

#include <catch2/catch.hpp>
#include <filesystem>

#include "codes/codes_support.h"
#include "support/support.h"
#include "vgen/core/error.h"

using namespace vgen;
using namespace vgen::codes;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;

TEST_CASE("crop sets: names there and back", "[codes]") {
  const CropSet published = parse_crop_set("ten_crop:1.05");
  CHECK(published.kind == CropSet::Kind::kTenCrop);
  CHECK(published.range == 1.05);
  CHECK(published.name() == "ten_crop:1.05");
  CHECK(published.count() == 10);
  CHECK(published.middle() == 4);
  CHECK(parse_crop_set("ten_crop").name() == "ten_crop:1.1");
  CHECK(parse_crop_set("center").count() == 1);
  CHECK(parse_crop_set("center_flip").count() == 2);
  const CropSet unmirrored = parse_crop_set("five_crop:1.2");
  CHECK(unmirrored.name() == "five_crop:1.2");
  CHECK(unmirrored.count() == 5);
  CHECK(unmirrored.middle() == 4);
  for (const std::string name : {"four_crop", "ten_crop:", "ten_crop:x", "ten_crop1.1", ""}) {
    CHECK_THAT(test::error_of([&] { parse_crop_set(name); }),
               Contains("expected center, center_flip, ten_crop:RANGE or five_crop:RANGE"));
  }
  CHECK_THAT(test::error_of([] { parse_crop_set("ten_crop:0.9"); }),
             Contains("the range must be in [1, 4]"));
}

TEST_CASE("code info: layout, and JSON there and back", "[codes]") {
  CodeInfo info = test::tiny_info();
  CHECK(info.num_tokens() == 6);
  CHECK(info.num_crops() == 12);
  CHECK(info.first_crop(1) == 2);
  CHECK(info.dtype() == io::Dtype::kUInt16);
  info.codebook_size = 65537;
  CHECK(info.dtype() == io::Dtype::kInt32);
  const CodeInfo again = info_from_json(info_to_json(info));
  CHECK(again.tokenizer == info.tokenizer);
  CHECK((again.crop_sets == info.crop_sets));
  CHECK(again.grid == info.grid);

  // VAR's ten scales make 680 codes.
  info.patch_nums = {1, 2, 3, 4, 5, 6, 8, 10, 13, 16};
  CHECK(info_from_json(info_to_json(info)).num_tokens() == 680);

  info.grid = {0, 3};
  CHECK_THAT(test::error_of([&] { info_from_json(info_to_json(info)); }),
             Contains("a grid side is 0"));
}

TEST_CASE("code info: what a config asks for", "[codes]") {
  const CodeInfo info = test::tiny_info();
  const CodeRequirements fits{.tokenizer = info.tokenizer,
                              .grid = {2, 3},
                              .num_tokens = 6,
                              .codebook_size = 50000,
                              .num_classes = 3};
  CHECK_NOTHROW(check_fits(info, fits));
  CHECK_NOTHROW(check_fits(info, {}));
  const auto complaint = [&](auto change) {
    CodeRequirements required = fits;
    change(required);
    return test::error_of([&] { check_fits(info, required); });
  };
  CHECK_THAT(complaint([](auto& r) { r.tokenizer = "vqgan-beef"; }),
             Contains("made by the tokenizer vqgan-0123456789abcdef, but the config asks for "
                      "vqgan-beef"));
  CHECK_THAT(complaint([](auto& r) {
               r.grid = {16, 16};
             }),
             Contains("the grid [2, 3] (images of 32 pixels), but the config asks for [16, 16]"));
  CHECK_THAT(complaint([](auto& r) { r.grid = {}, r.num_tokens = 256; }),
             Contains("an image has 6 codes (images of 32 pixels), but the config asks for 256"));
  CHECK_THAT(complaint([](auto& r) { r.codebook_size = 16384; }),
             Contains("a vocabulary of 50000, but the config asks for 16384"));
  CHECK_THAT(complaint([](auto& r) { r.num_classes = 2; }),
             Contains("the codes have 3 classes, but the config asks for 2"));
}

TEST_CASE("code shards: what is written is read", "[codes]") {
  const int64_t vocabulary = GENERATE(50000, 70000);
  CodeInfo info = test::tiny_info();
  info.codebook_size = vocabulary;
  const test::TempDir temp;
  ShardBuilder builder(info);
  auto codes = test::tiny_codes(info, 7);
  codes[13] = vocabulary - 1;
  builder.add(3, 1, "a/x.png", test::tiny_codes(info, 3));
  builder.add(7, -1, "", codes);
  builder.write(temp.path(), 12, info_to_json(info));

  const Shard shard = open_shard(temp / "shard-00012.safetensors");
  CHECK(shard.number == 12);
  REQUIRE(shard.size() == 2);
  CHECK(shard.label(0) == 1);
  CHECK(shard.label(1) == -1);
  CHECK(shard.image(1) == 7);
  CHECK(shard.name(0) == "a/x.png");
  CHECK(shard.name(1).empty());
  CHECK(shard.codes.dtype == (vocabulary == 50000 ? io::Dtype::kUInt16 : io::Dtype::kInt32));
  std::vector<int64_t> row(6);
  shard.read(1, 2, vocabulary, row);
  CHECK(row == std::vector<int64_t>(codes.begin() + 12, codes.begin() + 18));
  CHECK_THAT(test::error_of([&] { shard.read(1, 2, vocabulary - 1, row); }),
             Contains(str_cat("has the code ", vocabulary - 1, ", expected 0 to ")));
}

TEST_CASE("code shards: an empty one is one", "[codes]") {
  const test::TempDir temp;
  ShardBuilder(test::tiny_info()).write(temp.path(), 0, info_to_json(test::tiny_info()));
  CHECK(check_shard(temp / shard_name(0), test::tiny_info(), info_to_json(test::tiny_info()))
            .images == 0);
}

TEST_CASE("code shards: the bytes depend on the contents alone", "[codes]") {
  const test::TempDir a, b;
  test::write_codes(a.path(), test::tiny_info(), 5, 4);
  test::write_codes(b.path(), test::tiny_info(), 5, 4);
  for (const std::string name :
       {"index.json", "shard-00000.safetensors", "shard-00001.safetensors"}) {
    CHECK(test::read_file(a / name) == test::read_file(b / name));
  }
}

TEST_CASE("code shards: every damaged byte is noticed", "[codes]") {
  const test::TempDir temp;
  CodeInfo info = test::tiny_info();
  info.crop_sets = {parse_crop_set("center")};
  test::write_codes(temp.path(), info, 2, 4);
  const std::string path = temp / shard_name(0), good = test::read_file(path);
  // Tensors begin where the header ends: all bytes from there on matter.
  const auto header = static_cast<int64_t>(static_cast<unsigned char>(good[0])) +
                      256 * static_cast<int64_t>(static_cast<unsigned char>(good[1]));
  for (auto byte = 8 + header; byte < static_cast<int64_t>(good.size()); ++byte) {
    test::flip_byte(path, byte);
    CAPTURE(byte);
    CHECK_THAT(test::error_of([&] { check_shard(path, info, info_to_json(info)); }),
               Contains(shard_name(0) + ":"));
    test::write_file(path, good);
  }
  for (const size_t size : {size_t{0}, size_t{7}, size_t{100}, good.size() - 1}) {
    test::write_file(path, good.substr(0, size));
    CHECK_THROWS_AS(check_shard(path, info, info_to_json(info)), Error);
  }
}

TEST_CASE("code shards: other safetensors files are refused", "[codes]") {
  CHECK_THAT(test::error_of([] { open_shard(test::golden("vq16/ckpt.safetensors")); }),
             Contains("not a shard of codes"));
}

TEST_CASE("code index: damage is named", "[codes]") {
  const test::TempDir temp;
  test::write_codes(temp.path(), test::tiny_info(), 2, 4);
  const std::string path = temp / "index.json", good = test::read_file(path);
  const auto complaint = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const size_t at = text.find(from);
    REQUIRE(at != std::string::npos);
    test::write_file(path, text.replace(at, from.size(), to));
    return test::error_of([&] { read_index(temp.path()); });
  };
  CHECK_THAT(complaint("vgen-codes-1", "other"), Contains("has the format 'other'"));
  CHECK_THAT(complaint("\"images\": 2", "\"images\": 3"), Contains("have 2 images, but"));
  CHECK_THAT(complaint("shard-00000", "../x"), Contains("expected a plain file name"));
  CHECK_THAT(complaint("center_flip", "left"), Contains("crops 'left'"));
  CHECK_THAT(complaint("\"codebook_size\": 50000", "\"codebook_size\": 0"),
             Contains("the codebook has no codes"));
  CHECK_THAT(complaint("\"grid\"", "\"rid\""), Contains("missing 'grid'"));
}
