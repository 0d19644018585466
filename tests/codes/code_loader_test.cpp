#include "vgen/codes/code_loader.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <map>
#include <set>

#include "codes/codes_support.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/codes/official_layout.h"
#include "vgen/core/error.h"

using namespace vgen;
using namespace vgen::codes;
using Catch::Matchers::Contains;

namespace {

/// What tells where a row came from: tiny_codes() begin a crop with 100 image + 6 crop.
struct Origin {
  int64_t image = 0;
  int64_t crop = 0;
};

Origin origin(const at::Tensor& code_T) {
  const int64_t first = code_T[0].item<int64_t>();
  return {.image = first / 100, .crop = first % 100 / 6};
}

class CodesFixture {
 protected:
  CodesFixture() { test::write_codes(temp.path(), test::tiny_info(), 30, 8); }

  CodeLoader training(const data::LoaderOptions& options, CodeDataConfig config = {}) {
    config.train = temp.path();
    return CodeLoader::for_training(config, {.num_tokens = 6, .num_classes = 3}, options);
  }
  CodeLoader validation(const data::LoaderOptions& options) {
    return CodeLoader::for_validation({.val = temp.path()}, {}, options);
  }

  test::TempDir temp;
};

}  // namespace

TEST_CASE_METHOD(CodesFixture, "code loader: an epoch has every image once, with its label",
                 "[codes]") {
  CodeLoader loader = training({.batch_size = 5, .seed = 1});
  CHECK(loader.batches_per_epoch() == 6);
  std::vector<int64_t> first_order;
  for (int64_t epoch = 0; epoch < 2; ++epoch) {
    std::vector<int64_t> order;
    for (int64_t i = 0; i < 6; ++i) {
      CHECK(loader.position() == data::LoaderPosition{i == 0 && epoch == 1 ? 0 : epoch,
                                                      i == 0 && epoch == 1 ? 30 : 5 * i});
      const CodeBatch batch = loader.next();
      REQUIRE(batch.code_BT.sizes() == at::IntArrayRef({5, 6}));
      REQUIRE(batch.code_BT.scalar_type() == at::kLong);
      REQUIRE(batch.label_B.scalar_type() == at::kLong);
      for (int64_t row = 0; row < 5; ++row) {
        const int64_t image = batch.index[static_cast<size_t>(row)];
        order.push_back(image);
        CHECK(origin(batch.code_BT[row]).image == image);
        CHECK(batch.label_B[row].item<int64_t>() == image % 3);
        const auto first = batch.code_BT[row][0].item<int64_t>();
        CHECK_THAT(batch.code_BT[row], test::AllClose(at::arange(first, first + 6), test::kExact));
      }
    }
    CHECK(std::set<int64_t>(order.begin(), order.end()).size() == 30);
    if (epoch == 0) first_order = order;
    CHECK((epoch == 0) == (order == first_order));
  }
  CHECK(loader.stats().images == 60);
  CHECK(loader.stats().broken == 0);
}

TEST_CASE_METHOD(CodesFixture, "code loader: crop sets are equally likely, crops in them too",
                 "[codes]") {
  CodeLoader loader = training({.batch_size = 30, .seed = 2});
  std::map<int64_t, int64_t> counts;
  const int64_t epochs = 200;
  for (int64_t i = 0; i < epochs; ++i) {
    const CodeBatch batch = loader.next();
    for (int64_t row = 0; row < 30; ++row) ++counts[origin(batch.code_BT[row]).crop];
  }
  const double samples = 30.0 * epochs;
  for (int64_t crop = 0; crop < 12; ++crop) {
    const double expected = samples / 2 / (crop < 2 ? 2 : 10);
    CAPTURE(crop, expected);
    CHECK(std::abs(static_cast<double>(counts[crop]) - expected) < 5 * std::sqrt(expected));
  }

  // One set by name.
  CodeLoader ten = training({.batch_size = 30, .seed = 2}, {.crops = {"ten_crop"}});
  for (int64_t i = 0; i < 10; ++i) {
    const CodeBatch batch = ten.next();
    for (int64_t row = 0; row < 30; ++row) CHECK(origin(batch.code_BT[row]).crop >= 2);
  }
  CHECK_THAT(test::error_of([&] { training({}, {.crops = {"ten_crop:1.05"}}); }),
             Contains("has no crops 'ten_crop:1.05' (data.crops), only center_flip, ten_crop:1.1"));
}

TEST_CASE_METHOD(CodesFixture, "code loader: ranks see parts of one epoch", "[codes]") {
  std::map<int64_t, at::Tensor> alone;
  CodeLoader single = training({.batch_size = 30, .seed = 3});
  const CodeBatch whole = single.next();
  for (size_t i = 0; i < 30; ++i) alone[whole.index[i]] = whole.code_BT[static_cast<int64_t>(i)];
  std::set<int64_t> seen;
  for (int64_t rank = 0; rank < 3; ++rank) {
    CodeLoader loader = training({.batch_size = 5, .seed = 3, .rank = rank, .world_size = 3});
    CHECK(loader.batches_per_epoch() == 2);
    for (int64_t i = 0; i < 2; ++i) {
      const CodeBatch batch = loader.next();
      for (int64_t row = 0; row < 5; ++row) {
        const int64_t image = batch.index[static_cast<size_t>(row)];
        CHECK(seen.insert(image).second);
        CHECK_THAT(batch.code_BT[row], test::AllClose(alone.at(image), test::kExact));
      }
    }
  }
  CHECK(seen.size() == 30);
}

TEST_CASE_METHOD(CodesFixture, "code loader: seek continues as if nothing had happened",
                 "[codes]") {
  const data::LoaderOptions options{.batch_size = 4, .seed = 4};
  CodeLoader loader = training(options);
  for (int64_t taken = 0; taken < 17; ++taken) {  // 7 batches an epoch, 2 images are left over
    CodeLoader other = training(options);
    other.seek(loader.position());
    const CodeBatch expected = loader.next();
    const CodeBatch batch = other.next();
    CHECK(batch.index == expected.index);
    CHECK_THAT(batch.code_BT, test::AllClose(expected.code_BT, test::kExact));
    CHECK(other.position() == loader.position());
  }
  CHECK_THAT(test::error_of([&] { loader.seek({.epoch = 0, .sample = 31}); }),
             Contains("cannot continue at sample 31 of epoch 0: an epoch has 30 samples"));
}

TEST_CASE_METHOD(CodesFixture, "code loader: a pass of validation is exact and repeatable",
                 "[codes]") {
  for (int64_t rank = 0; rank < 2; ++rank) {
    CodeLoader loader = validation({.batch_size = 4, .rank = rank, .world_size = 2});
    for (int64_t pass = 0; pass < 2; ++pass) {
      std::vector<int64_t> order;
      while (const auto batch = loader.next_in_pass()) {
        for (int64_t row = 0; row < batch->code_BT.size(0); ++row) {
          order.push_back(batch->index[static_cast<size_t>(row)]);
          CHECK(origin(batch->code_BT[row]).crop == 0);
        }
      }
      REQUIRE(order.size() == 15);
      for (int64_t i = 0; i < 15; ++i) CHECK(order[static_cast<size_t>(i)] == rank + 2 * i);
    }
  }
}

TEST_CASE_METHOD(CodesFixture, "code loader: broken images are skipped and counted, or fatal",
                 "[codes]") {
  const std::string shard = temp / "shard-00001.safetensors";
  std::string bytes = test::read_file(shard);
  SECTION("one crop") {
    std::string needle;  // image 12, crop 0: 1200, 1201
    for (const int code : {1200, 1201})
      needle += {static_cast<char>(code % 256), static_cast<char>(code / 256)};
    const size_t at = bytes.find(needle);
    REQUIRE(at != std::string::npos);
    bytes[at] ^= 1;
    test::write_file(shard, bytes);
    CodeLoader loader = validation({.batch_size = 30});
    const auto batch = loader.next_in_pass();
    REQUIRE(batch->index.size() == 29);
    CHECK(std::ranges::count(batch->index, 12) == 0);
    CHECK_FALSE(loader.next_in_pass());
    CodeLoader fails = CodeLoader::for_validation({.val = temp.path(), .on_broken = "fail"}, {},
                                                  {.batch_size = 8});
    CHECK(fails.next_in_pass().has_value());  // what was before it is good
    CHECK_THAT(test::error_of([&] { fails.next_in_pass(); }), Contains("image 4 (c0/12.png)"));
    CHECK_THAT(test::error_of([&] { fails.next_in_pass(); }), Contains("image 4 (c0/12.png)"));
  }
  SECTION("a shard") {
    test::write_file(shard, bytes.substr(0, 1000));
    CodeLoader loader = training({.batch_size = 11, .seed = 1});
    std::set<int64_t> seen;
    for (int64_t i = 0; i < 2; ++i) {
      for (const int64_t image : loader.next().index) {
        CHECK((image < 8 || image >= 16));
        CHECK(seen.insert(image).second);
      }
    }
    CHECK(seen.size() == 22);
    CHECK(loader.stats().broken <= 8);
    CHECK_THAT(test::error_of([&] { training({}, {.on_broken = "fail"}); }),
               Contains("shard-00001.safetensors: has 1000 bytes"));
  }
  SECTION("so many that no batch is full") {
    test::write_file(shard, "");
    CodeLoader loader = training({.batch_size = 23, .seed = 1});
    CHECK_THAT(test::error_of([&] { loader.next(); }),
               Contains("epoch 0 gave no full batch of 23: 8 of 30 images are broken"));
  }
}

TEST_CASE_METHOD(CodesFixture, "code loader: codes that do not fit are refused by name",
                 "[codes]") {
  const auto error = [&](const CodeRequirements& required) {
    return test::error_of(
        [&] { CodeLoader::for_training({.train = temp.path()}, required, {.batch_size = 2}); });
  };
  CHECK_THAT(error({.tokenizer = "vqgan-beef"}),
             Contains(temp.path() + ": the codes were made by the tokenizer "
                                    "vqgan-0123456789abcdef, but the config asks for vqgan-beef"));
  CHECK_THAT(error({.grid = {3, 2}}), Contains("the grid [2, 3] (images of 32 pixels), but the "
                                               "config asks for [3, 2]"));
  CHECK_THAT(error({.codebook_size = 16384}),
             Contains("a vocabulary of 50000, but the config asks for 16384"));
  CHECK_THAT(error({.num_classes = 2}), Contains("have 3 classes, but the config asks for 2"));
  CHECK_THAT(test::error_of([&] { training({.batch_size = 31}); }),
             Contains("a batch of 31 needs more than the 30 images of rank 0"));
  CHECK_THAT(test::error_of([&] { CodeLoader::for_training({}, {}, {}); }),
             Contains("no codes: give the folder"));
}

TEST_CASE("code loader: the official layout, checked as far as it goes", "[codes]") {
  const test::TempDir temp;
  CodeInfo info = test::tiny_info();
  info.grid = {2, 2};
  info.crop_sets = {parse_crop_set("ten_crop:1.1"), parse_crop_set("ten_crop:1.05")};
  const OfficialWriter writer(temp / "flip_ten_crop", info);
  for (int64_t image = 0; image < 6; ++image) {
    writer.write(image, image == 3 ? 9 : image % 3, test::tiny_codes(info, image));
  }
  const CodeDataConfig config{.train = temp / "flip_ten_crop"};
  CodeLoader loader =
      CodeLoader::for_training(config, {.num_tokens = 4, .codebook_size = 500, .num_classes = 3},
                               {.batch_size = 4, .seed = 0});
  int64_t second_set = 0;
  for (int64_t epoch = 0; epoch < 100; ++epoch) {
    const CodeBatch batch = loader.next();
    for (int64_t row = 0; row < 4; ++row) {
      const int64_t image = batch.index[static_cast<size_t>(row)];
      CHECK(image != 3);  // its label is out of range
      CHECK(image != 5);  // its codes are out of the vocabulary
      const int64_t first = batch.code_BT[row][0].item<int64_t>();
      CHECK(first / 100 == image);
      second_set += first % 100 >= 40;
    }
  }
  CHECK(second_set > 140);  // of 400; five standard deviations are 50
  CHECK(second_set < 260);
  CHECK(loader.stats().broken > 0);
}

TEST_CASE("code loader: the official layout with codes of another tokenizer", "[codes]") {
  const test::TempDir temp;
  CodeInfo info = test::tiny_info();
  info.grid = {2, 2};
  info.crop_sets = {parse_crop_set("center_flip")};
  // Image i has the codes 100 i to 100 i + 7.
  const auto write = [&](const std::string& name, int64_t begin, int64_t end) {
    const OfficialWriter writer(temp / name, info);
    for (int64_t image = begin; image < end; ++image) {
      writer.write(image, 0, test::tiny_codes(info, image));
    }
    return temp / name;
  };
  const auto open = [&](const std::string& path, int64_t codebook_size) {
    CodeLoader::for_training({.train = path}, {.codebook_size = codebook_size}, {.batch_size = 2});
  };
  const auto error = [&](const std::string& path, int64_t codebook_size) {
    return test::error_of([&] { open(path, codebook_size); });
  };
  const auto expected = [](const std::string& path, const std::string& values) {
    return path + ": " + values +
           " images go beyond it, so they are of another tokenizer: extract them again with the "
           "right one, or change the config";
  };
  const std::string path = write("flip_a", 10, 90);
  CHECK_NOTHROW(open(path, 9000));
  CHECK_NOTHROW(open(path, 7103));  // the images 71, 72 and 73 go beyond it: three of 64
  CHECK(error(path, 7003) ==
        expected(path,
                 "70.npy has the code 7003, but the vocabulary ends at 7002; 4 of the first 64"));
  CHECK_THAT(test::error_of([&] {
               CodeLoader::for_validation({.val = path}, {.codebook_size = 500}, {.batch_size = 2});
             }),
             Contains(path + ": 10.npy has the code 1003") && Contains("; 64 of the first 64"));
  const std::string few = write("flip_b", 10, 12);
  CHECK_NOTHROW(open(few, 1050));  // one of two
  CHECK(
      error(few, 500) ==
      expected(few, "10.npy has the code 1003, but the vocabulary ends at 499; 2 of the first 2"));
  // What cannot be read is left to the reader.
  test::write_file(few + "/imagenet32_codes/11.npy", "no array");
  CHECK_NOTHROW(open(few, 1050));

  // Each crop set has a folder of its own. In the middle crop image i has 100 i + 16 to 19 in the
  // first, 100 i + 56 to 59 in the second.
  info.crop_sets = {parse_crop_set("ten_crop:1.1"), parse_crop_set("ten_crop:1.05")};
  const std::string sets = write("flip_ten_crop", 0, 90);
  CHECK_NOTHROW(open(sets, 6140));  // two of 64, and three
  CHECK_THAT(error(sets, 6040), Contains("60.npy has the code 6059") && Contains("; 4 of the"));
}

TEST_CASE("code loader: the config names its fields", "[codes]") {
  const auto config = load_config<CodeDataConfig>("", {"train=a", "crops=[center]"});
  CHECK(config.train == "a");
  CHECK(config.crops == std::vector<std::string>{"center"});
  CHECK_THAT(test::error_of([] { load_config<CodeDataConfig>("", {"on_broken=ignore"}); }),
             Contains("on_broken"));
}
