#include "vgen/data/loader.h"

#include <torch/torch.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <map>
#include <set>

#include "data/data_support.h"
#include "support/support.h"
#include "support/torch_support.h"
#include "vgen/core/config.h"
#include "vgen/core/log.h"
#include "vgen/core/strings.h"
#include "vgen/data/sampler.h"

namespace vgen::data {
namespace {

using test::TempDir;

DataConfig config_of(const std::string& path, int64_t workers = 2) {
  DataConfig config;
  config.train = {.path = path, .index_cache = "off"};
  config.val = config.train;
  config.image_size = 8;
  config.workers = workers;
  return config;
}

bool same(const ImageBatch& a, const ImageBatch& b) {
  return a.index == b.index && torch::equal(a.label_B, b.label_B) &&
         torch::equal(a.image_B3HW, b.image_B3HW);
}

std::vector<int64_t> order(int64_t size, int64_t epoch, uint64_t seed) {
  return Sampler({.size = size, .seed = seed}).order(epoch);
}

/// Class folders with some files that are no images.
void write_with_broken(const std::string& root, const std::set<int>& broken, int count) {
  for (int i = 0; i < count; ++i) {
    const std::string name = str_cat("c", i % 3, "/", i < 10 ? "0" : "", i, ".png");
    test::write_files(
        root,
        {{name, broken.contains(i) ? "broken" : test::png_bytes(test::make_picture(9, 8, i))}});
  }
}

/// What is logged while `body` runs.
std::string log_of(const std::string& file, const std::function<void()>& body) {
  init_logging({.level = LogLevel::kInfo, .file = file});
  body();
  init_logging({});
  return test::read_file(file);
}

size_t count_of(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

}  // namespace

TEST_CASE("loader: batches for a CUDA device are page-locked", "[data][cuda]") {
  if (test::lacks_cuda()) return;
  const test::TempDir dir;
  test::write_files(dir.path(), test::class_folders(2, 3));
  DataConfig config;
  config.image_size = 8;
  config.workers = 1;
  config.train.path = dir.path();
  Loader loader = Loader::for_training(config, {.batch_size = 2, .pin_memory = true});
  const ImageBatch batch = loader.next();
  CHECK(batch.image_B3HW.is_pinned());
  CHECK(batch.label_B.is_pinned());
}

TEST_CASE("loader: batches follow the order of the epochs", "[data]") {
  const TempDir temp;
  test::write_files(temp.path(), test::class_folders(5, 2));
  Loader loader = Loader::for_training(config_of(temp.path()), {.batch_size = 4, .seed = 3});
  CHECK(loader.num_classes() == 5);
  CHECK(loader.batches_per_epoch() == 2);
  CHECK(loader.position() == LoaderPosition{});
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    const auto expected = order(10, epoch, 3);
    for (int64_t b = 0; b < 2; ++b) {  // the last two of ten are dropped
      const ImageBatch batch = loader.next();
      CHECK(batch.index ==
            std::vector<int64_t>(expected.begin() + 4 * b, expected.begin() + 4 * b + 4));
      CHECK(batch.image_B3HW.sizes() == torch::IntArrayRef({4, 3, 8, 8}));
      CHECK(batch.image_B3HW.is_contiguous());
      CHECK(batch.image_B3HW.abs().max().item<float>() <= 1);
      for (int64_t i = 0; i < 4; ++i) {
        CHECK(batch.label_B[i].item<int64_t>() == batch.index[static_cast<size_t>(i)] / 2);
      }
      CHECK(loader.position() == LoaderPosition{epoch, 4 * b + 4});
    }
  }
  CHECK(loader.stats().images == 24);
  CHECK(loader.stats().broken == 0);
}

TEST_CASE("loader: the number of workers changes nothing", "[data]") {
  const TempDir temp;
  test::write_files(temp.path(), test::class_folders(3, 7, 20));
  for (const char* transform : {"random_crop", "var", "center_crop"}) {
    std::vector<ImageBatch> first;
    for (const int64_t workers : {1, 2, 7}) {
      DataConfig config = config_of(temp.path(), workers);
      config.transform = transform;
      config.prefetch_batches = workers;
      Loader loader = Loader::for_training(config, {.batch_size = 5, .seed = 1});
      for (size_t b = 0; b < 12; ++b) {
        ImageBatch batch = loader.next();
        if (workers == 1) first.push_back(batch);
        CHECK(same(batch, first[b]));
      }
    }
  }
}

TEST_CASE("loader: a sample is cropped anew in every epoch, and flips follow flip_prob", "[data]") {
  const TempDir temp;
  test::write_files(temp.path(), test::class_folders(1, 1, 30));
  const auto first_of = [&](double flip_prob, int64_t epoch, const char* transform) {
    DataConfig config = config_of(temp.path());
    config.flip_prob = flip_prob;
    config.transform = transform;
    Loader loader = Loader::for_training(config, {.batch_size = 1, .seed = 5});
    loader.seek({.epoch = epoch, .sample = 0});
    return loader.next().image_B3HW;
  };
  CHECK_FALSE(torch::equal(first_of(0, 0, "random_crop"), first_of(0, 1, "random_crop")));
  for (const char* transform : {"random_crop", "center_crop"}) {
    CHECK(torch::equal(first_of(1, 0, transform), first_of(0, 0, transform).flip(3)));
  }
}

TEST_CASE("loader: resume in the middle of an epoch continues to the same batches", "[data]") {
  const TempDir temp;
  test::write_files(temp.path(), test::class_folders(2, 11, 12));
  const LoaderOptions options{.batch_size = 3, .seed = 8};
  Loader whole = Loader::for_training(config_of(temp.path()), options);
  for (int done = 0; done < 17; ++done) {  // seven batches an epoch
    Loader resumed = Loader::for_training(config_of(temp.path(), 1 + done % 3), options);
    resumed.seek(whole.position());
    CHECK(resumed.position() == whole.position());
    const ImageBatch expected = whole.next();
    CHECK(same(resumed.next(), expected));
    CHECK(resumed.position() == whole.position());
  }
  CHECK_THAT(test::error_of([&] { whole.seek({.epoch = 0, .sample = 23}); }),
             Catch::Contains("cannot continue at sample 23 of epoch 0: an epoch has 22 samples"));
}

TEST_CASE("loader: the nested ILSVRC tar and class folders give the same batches, resumed too",
          "[data]") {
  // ImageNet has grey, CMYK and PNG files that are named .JPEG.
  const TempDir temp;
  test::Files folders, inner;
  const std::vector<std::vector<std::string>> classes = {
      {"cmyk.jpg", "grey.jpg", "exif_rotated.jpg", "progressive.jpg", "rgb_420.jpg"},
      {"png_named.jpg", "alpha.png", "palette_transparent.png", "lossy.webp", "grey_alpha.png"}};
  for (size_t c = 0; c < classes.size(); ++c) {
    test::Files members;
    for (const std::string& file : classes[c]) {
      const std::string name = str_cat("n0", c, "_", members.size(), ".JPEG");
      members.emplace_back(name, test::read_file(test::golden("pil_photos/" + file)));
      folders.emplace_back(str_cat("n0", c, "/", name), members.back().second);
    }
    inner.insert(inner.begin(), {str_cat("n0", c, ".tar"), test::tar_bytes(members)});
  }
  test::write_files(temp / "train", folders);
  test::write_file(temp / "train.tar", test::tar_bytes(inner));
  DataConfig tar_config = config_of(temp / "train.tar");
  tar_config.on_broken = "fail";
  const LoaderOptions options{.batch_size = 4, .seed = 6};
  Loader folder = Loader::for_training(config_of(temp / "train"), options);
  Loader tar = Loader::for_training(tar_config, options);
  for (int b = 0; b < 5; ++b) {  // the second epoch is left in its middle
    CHECK(same(tar.next(), folder.next()));
    Loader resumed = Loader::for_training(tar_config, options);
    resumed.seek(tar.position());
    tar.seek(tar.position());  // also within one loader
    CHECK(same(resumed.next(), tar.next()));
    folder.next();
  }
}

TEST_CASE("loader: the flat ILSVRC validation tar with a list of labels", "[data]") {
  const TempDir temp;
  test::Files files;
  std::string list;
  for (int i = 1; i <= 5; ++i) {
    const std::string name = str_cat("ILSVRC2012_val_0000000", i, ".JPEG");
    files.insert(files.begin(), {name, test::jpeg_bytes(test::make_picture(12, 10, i))});
    list += str_cat(name, " n0", i % 2 ? 7 : 3, "\n");
  }
  test::write_file(temp / "val.tar", test::tar_bytes(files));
  test::write_file(temp / "val.txt", list);
  DataConfig config = config_of(temp / "val.tar");
  config.val.labels = temp / "val.txt";
  Loader loader = Loader::for_validation(config, {.batch_size = 5});
  const auto batch = loader.next_in_pass();
  REQUIRE(batch);
  CHECK(loader.num_classes() == 2);
  CHECK(torch::equal(batch->label_B, torch::tensor({1, 0, 1, 0, 1}, torch::kLong)));
}

TEST_CASE("loader: ranks share the order", "[data]") {
  const TempDir temp;
  test::write_files(temp.path(), test::class_folders(1, 9));
  const auto expected = order(9, 0, 2);
  for (int64_t rank = 0; rank < 2; ++rank) {
    Loader loader = Loader::for_training(
        config_of(temp.path()), {.batch_size = 5, .seed = 2, .rank = rank, .world_size = 2});
    const ImageBatch batch = loader.next();
    for (size_t i = 0; i < 5; ++i) {
      CHECK(batch.index[i] == expected[(2 * i + static_cast<size_t>(rank)) % 9]);
    }
  }
  DataConfig dropping = config_of(temp.path());
  dropping.shard_tail = "drop";
  Loader loader = Loader::for_training(dropping, {.batch_size = 4, .world_size = 2});
  CHECK(loader.batches_per_epoch() == 1);
}

TEST_CASE("loader: repeat counts each image several times, cropped differently", "[data]") {
  const TempDir temp;
  test::write_files(temp.path(), test::class_folders(1, 2, 40));
  DataConfig config = config_of(temp.path());
  config.train.repeat = 3;
  config.min_crop_frac = 0.2;
  config.flip_prob = 0;
  Loader loader = Loader::for_training(config, {.batch_size = 6});
  const ImageBatch batch = loader.next();
  std::map<int64_t, int> seen;
  for (const int64_t index : batch.index) ++seen[index];
  CHECK(seen == std::map<int64_t, int>{{0, 3}, {1, 3}});
  std::set<float> sums;
  for (int64_t i = 0; i < 6; ++i) sums.insert(batch.image_B3HW[i].sum().item<float>());
  CHECK(sums.size() == 6);
}

TEST_CASE("loader: broken images are skipped, counted and logged once, nothing is repeated",
          "[data]") {
  const TempDir temp;
  write_with_broken(temp / "set", {4, 5, 11}, 13);
  for (const int64_t workers : {1, 3}) {
    DataConfig config = config_of(temp / "set", workers);
    const std::string log = log_of(temp / "log.txt", [&] {
      Loader loader = Loader::for_training(config, {.batch_size = 5, .seed = 4});
      for (int64_t epoch = 0; epoch < 2; ++epoch) {
        std::vector<int64_t> expected;  // the order without the broken ones
        for (const int64_t index : order(13, epoch, 4)) {
          const std::string name = loader.dataset().name(index);
          const bool is_broken =
              name.ends_with("04.png") || name.ends_with("05.png") || name.ends_with("11.png");
          if (!is_broken) expected.push_back(index);
        }
        REQUIRE(expected.size() == 10);
        std::vector<int64_t> seen;
        for (int b = 0; b < 2; ++b) {
          const ImageBatch batch = loader.next();
          seen.insert(seen.end(), batch.index.begin(), batch.index.end());
        }
        CHECK(seen == expected);
      }
      CHECK(loader.stats().images == 20);
      CHECK(loader.stats().broken >= 3);
    });
    CHECK(count_of(log, "skipped: ") == 3);
    CHECK(count_of(log, "/set/c1/04.png: not an image: begins with 'broken'") == 1);
    std::filesystem::remove(temp / "log.txt");
  }
}

TEST_CASE("loader: resume among broken images", "[data]") {
  const TempDir temp;
  write_with_broken(temp.path(), {0, 3, 7, 8}, 17);
  Loader whole = Loader::for_training(config_of(temp.path()), {.batch_size = 3});
  for (int done = 0; done < 12; ++done) {
    Loader resumed = Loader::for_training(config_of(temp.path()), {.batch_size = 3});
    resumed.seek(whole.position());
    CHECK(same(resumed.next(), whole.next()));
  }
}

TEST_CASE("loader: a broken image is fatal when asked so", "[data]") {
  const TempDir temp;
  write_with_broken(temp.path(), {1}, 6);
  DataConfig config = config_of(temp.path());
  config.on_broken = "fail";
  Loader loader = Loader::for_training(config, {.batch_size = 1});
  const auto read_all = [&] {
    for (int i = 0; i < 7; ++i) loader.next();
  };
  CHECK_THAT(test::error_of(read_all), Catch::Contains("c1/01.png: not an image"));
  CHECK_THAT(test::error_of(read_all), Catch::Contains("c1/01.png: not an image"));  // again
}

TEST_CASE("loader: images that are too small or too large count as broken", "[data]") {
  const TempDir temp;
  test::write_files(temp.path(), {{"a/1.png", test::png_bytes(test::make_picture(5, 9, 1))},
                                  {"a/2.png", test::png_bytes(test::make_picture(9, 9, 1))}});
  DataConfig config = config_of(temp.path());
  config.on_broken = "fail";
  config.min_side = 6;
  Loader small = Loader::for_validation(config, {.batch_size = 2});
  CHECK_THAT(test::error_of([&] { small.next_in_pass(); }),
             Catch::Contains("a/1.png: image of 5 x 9 is too small: expected at least 6 pixels"));
  config.min_side = 1;
  config.max_pixels = 50;
  Loader large = Loader::for_validation(config, {.batch_size = 2});
  CHECK_THAT(test::error_of([&] { large.next_in_pass(); }),
             Catch::Contains("a/2.png: image of 9 x 9 pixels is over the limit of 50"));
}

TEST_CASE("loader: a dataset of broken images alone is an error, not a search without end",
          "[data]") {
  const TempDir temp;
  write_with_broken(temp.path(), {0, 1, 2, 3}, 5);
  Loader training = Loader::for_training(config_of(temp.path()), {.batch_size = 2});
  CHECK_THAT(test::error_of([&] { training.next(); }),
             Catch::Contains("epoch 0 gave no full batch of 2: 4 of 5 images are broken"));
  write_with_broken(temp / "all", {0, 1, 2}, 3);
  Loader validation = Loader::for_validation(config_of(temp / "all"), {.batch_size = 2});
  const std::string begins = temp / "all/c0/00.png: not an image: begins with 'broken'";
  CHECK_THAT(test::error_of([&] { validation.next_in_pass(); }),
             Catch::StartsWith(temp / "all: none of 3 images can be read; the first: " + begins));
  const std::string file = temp / "all/c0/00.png";
  Loader one =
      Loader::for_validation(config_of(file), {.batch_size = 2}, Dataset::of_files({file}));
  CHECK_THAT(test::error_of([&] { one.next_in_pass(); }), Catch::StartsWith(begins));
}

TEST_CASE("loader: a validation pass is content with one good image", "[data]") {
  const TempDir temp;
  write_with_broken(temp.path(), {0, 1, 2, 4}, 5);
  Loader loader = Loader::for_validation(config_of(temp.path()), {.batch_size = 2});
  for (int pass = 0; pass < 2; ++pass) {
    const auto batch = loader.next_in_pass();
    REQUIRE(batch);
    CHECK(batch->index.size() == 1);
    CHECK_FALSE(loader.next_in_pass());
  }
}

TEST_CASE("loader: a validation pass has every image once, in order, again and again", "[data]") {
  const TempDir temp;
  test::write_files(temp.path(), test::class_folders(1, 7, 12));
  for (const char* transform : {"center_crop", "var"}) {
    DataConfig config = config_of(temp.path());
    config.val_transform = transform;
    Loader loader = Loader::for_validation(config, {.batch_size = 3});
    CHECK(loader.batches_per_epoch() == 3);
    std::vector<ImageBatch> first;
    for (int pass = 0; pass < 3; ++pass) {
      std::vector<int64_t> seen;
      for (size_t b = 0; auto batch = loader.next_in_pass(); ++b) {
        seen.insert(seen.end(), batch->index.begin(), batch->index.end());
        CHECK(batch->image_B3HW.size(0) == static_cast<int64_t>(batch->index.size()));
        CHECK(batch->label_B.size(0) == batch->image_B3HW.size(0));
        if (pass == 0) first.push_back(*batch);
        CHECK(same(*batch, first[b]));
      }
      CHECK(seen == std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6});
    }
  }
}

TEST_CASE("loader: validation ranks together have every image once", "[data]") {
  const TempDir temp;
  test::write_files(temp.path(), test::class_folders(1, 7));
  std::vector<int64_t> seen;
  for (int64_t rank = 0; rank < 3; ++rank) {
    Loader loader = Loader::for_validation(config_of(temp.path()),
                                           {.batch_size = 2, .rank = rank, .world_size = 3});
    while (auto batch = loader.next_in_pass()) {
      seen.insert(seen.end(), batch->index.begin(), batch->index.end());
    }
  }
  CHECK(seen == std::vector<int64_t>{0, 3, 6, 1, 4, 2, 5});
}

TEST_CASE("loader: a cache of decoded images changes nothing but reads", "[data]") {
  const TempDir temp;
  test::write_files(temp / "set", test::class_folders(1, 4, 16));
  DataConfig config = config_of(temp / "set");
  Loader plain = Loader::for_training(config, {.batch_size = 4});
  config.cache_mb = 1;
  Loader cached = Loader::for_training(config, {.batch_size = 4});
  CHECK(same(cached.next(), plain.next()));
  CHECK(same(cached.next(), plain.next()));
  std::filesystem::remove_all(temp / "set");
  for (int i = 0; i < 8; ++i) CHECK(cached.next().index.size() == 4);
  CHECK(cached.stats().broken == 0);
}

TEST_CASE("loader: decode_scale gives nearly the same batches", "[data]") {
  DataConfig config = config_of(test::project_path("data/photos"));
  config.image_size = 64;
  Loader exact = Loader::for_training(config, {.batch_size = 8});
  config.decode_scale = true;
  config.min_side = 300;  // of the file, not of what is decoded
  config.on_broken = "fail";
  Loader scaled = Loader::for_training(config, {.batch_size = 8});
  const ImageBatch a = exact.next(), b = scaled.next();
  CHECK(a.index == b.index);
  const double difference = (a.image_B3HW - b.image_B3HW).abs().mean().item<double>();
  CHECK(difference > 0);
  CHECK(difference < 0.1);
}

TEST_CASE("loader: early destruction, moves and seeks do not hang", "[data]") {
  const TempDir temp;
  test::write_files(temp.path(), test::class_folders(2, 20, 64));
  for (int i = 0; i < 20; ++i) {
    Loader loader = Loader::for_training(config_of(temp.path(), 1 + i % 4), {.batch_size = 8});
    for (int b = 0; b < i % 3; ++b) loader.next();
    Loader moved = std::move(loader);
    if (i % 2) moved.next();
    if (i % 5 == 0) moved.seek({.epoch = 3, .sample = 2});
    if (i % 5 == 0) moved.next();
  }
  Loader validation = Loader::for_validation(config_of(temp.path()), {.batch_size = 3});
  validation.next_in_pass();
}

TEST_CASE("loader: impossible configurations are told", "[data]") {
  const TempDir temp;
  test::write_files(temp.path(), test::class_folders(1, 3));
  const auto error_with = [&](auto change, const LoaderOptions& options) {
    DataConfig config = config_of(temp.path());
    change(config);
    return test::error_of([&] { Loader::for_training(config, options); });
  };
  CHECK_THAT(error_with([](DataConfig& c) { c.workers = 0; }, {}),
             Catch::Contains("data.workers is 0: expected 1 to 1024 threads"));
  CHECK_THAT(error_with([](DataConfig& c) { c.prefetch_batches = 0; }, {}),
             Catch::Contains("data.prefetch_batches is 0"));
  CHECK_THAT(error_with([](DataConfig& c) { c.image_size = 0; }, {}),
             Catch::Contains("data.image_size is 0"));
  CHECK_THAT(error_with([](DataConfig& c) { c.min_crop_frac = 1.5; }, {}),
             Catch::Contains("0 < min_crop_frac <= max_crop_frac <= 1"));
  CHECK_THAT(error_with([](DataConfig&) {}, {.batch_size = 0}), Catch::Contains("batch size 0"));
  CHECK_THAT(error_with([](DataConfig&) {}, {.batch_size = 4}),
             Catch::Contains("a batch of 4 needs more than the 3 images of rank 0; use a smaller"));
  CHECK_THAT(error_with([](DataConfig& c) { c.train.path = ""; }, {}),
             Catch::Contains("no dataset"));
}

TEST_CASE("loader: the data section of a config", "[data]") {
  const TempDir temp;
  test::write_file(temp / "c.yaml",
                   "train: {path: data/digits.tar.gz, split: train}\nimage_size: 32\nworkers: 3\n");
  const auto config = load_config<DataConfig>(temp / "c.yaml");
  CHECK(config.train.split == "train");
  CHECK(config.workers == 3);
  CHECK(read_config<DataConfig>(parse_yaml(dump_config(config), "again")).image_size == 32);
  const auto error_of_yaml = [&](const std::string& text) {
    test::write_file(temp / "c.yaml", text);
    return test::error_of([&] { load_config<DataConfig>(temp / "c.yaml"); });
  };
  CHECK_THAT(error_of_yaml("workers: 0\n"),
             Catch::Contains("c.yaml:1") && Catch::Contains("workers"));
  CHECK_THAT(error_of_yaml("train:\n  pth: x\n"), Catch::Contains("is it 'path'?"));
  CHECK_THAT(error_of_yaml("on_broken: ignore\n"), Catch::Contains("skip"));
}

}  // namespace vgen::data
