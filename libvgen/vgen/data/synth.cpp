#include "vgen/data/synth.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "vgen/core/error.h"
#include "vgen/core/log.h"
#include "vgen/core/threads.h"
#include "vgen/data/detail/in_order.h"
#include "vgen/data/detail/new_folder.h"
#include "vgen/data/detail/scene.h"
#include "vgen/data/detail/tar_writer.h"
#include "vgen/io/atomic_file.h"
#include "vgen/io/json.h"

namespace vgen::data {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxShardSize = 10'000;  // rows of a key

std::string digits(int64_t number, int width) {
  char text[32];
  std::snprintf(text, sizeof(text), "%0*lld", width, static_cast<long long>(number));
  return text;
}

/// Shape of a label, colour and texture where the classes tell them apart (-1 = drawn).
struct ClassParts {
  int64_t shape = 0, colour = -1, texture = -1;
};

ClassParts parts_of(int64_t label, int64_t classes) {
  ClassParts parts{.shape = label % detail::kShapes};
  if (classes > detail::kShapes) parts.colour = label / 10 % detail::kColours;
  if (classes > detail::kShapes * detail::kColours) parts.texture = label / 100;
  return parts;
}

std::string class_name(int64_t label, int64_t classes) {
  const ClassParts parts = parts_of(label, classes);
  std::string name = digits(label, 3);
  if (parts.texture >= 0) name += str_cat("-", detail::texture_name(parts.texture));
  if (parts.colour >= 0) name += str_cat("-", detail::colour_name(parts.colour));
  return str_cat(name, "-", detail::shape_name(parts.shape));
}

void check_picture_config(const SynthConfig& c) {
  const auto check = [](bool is_good, const char* name, int64_t value, const char* expected) {
    require(is_good, ErrorCode::kInvalidArgument, name, " is ", value, ": expected ", expected);
  };
  check(c.classes >= 1 && c.classes <= kMaxSynthClasses, "classes", c.classes, "1 to 1000");
  check(c.size >= 8 && c.size <= 16384, "size", c.size, "8 to 16384 pixels");
  check(c.max_size == 0 || (c.max_size >= c.size && c.max_size <= 16384), "max-size", c.max_size,
        "0 or from size to 16384 pixels");
}

void check_config(const SynthConfig& c) {
  check_picture_config(c);
  require(!c.out.empty(), ErrorCode::kInvalidArgument, "no output: name a folder or a .tar");
  require(c.count >= 1, ErrorCode::kInvalidArgument, "count is ", c.count,
          ": expected at least 1 image");
  require(c.count >= c.classes || c.layout == "shards", ErrorCode::kInvalidArgument, "count ",
          c.count, " is below classes ", c.classes,
          ": a class folder without images is no dataset; raise count or lower classes");
  require(c.layout == "folder" || c.layout == "tar" || c.layout == "shards",
          ErrorCode::kInvalidArgument, "layout '", c.layout, "': expected folder, tar or shards");
  require((c.layout == "tar") == to_lower(c.out).ends_with(".tar"), ErrorCode::kInvalidArgument,
          c.out, ": layout ", c.layout,
          c.layout == "tar" ? " needs a name that ends with .tar" : " makes a folder, not a .tar");
  require(c.format == "jpeg" || c.format == "png", ErrorCode::kInvalidArgument, "format '",
          c.format, "': expected jpeg or png");
  require(c.shard_size >= 1 && c.shard_size <= kMaxShardSize, ErrorCode::kInvalidArgument,
          "shard-size is ", c.shard_size, ": expected 1 to ", kMaxShardSize);
  require(c.quality >= 1 && c.quality <= 100, ErrorCode::kInvalidArgument, "quality is ", c.quality,
          ": expected 1 to 100");
  check_worker_count("workers", c.workers);
  require(!fs::exists(c.out), ErrorCode::kInvalidArgument, c.out,
          ": exists already; choose another name or remove it");
}

/// A picture as it is written.
struct EncodedPicture {
  SynthPicture picture;  // without pixels
  int64_t width = 0, height = 0;
  std::vector<std::byte> file;
};

EncodedPicture encode_picture(const SynthConfig& config, int64_t index) {
  EncodedPicture out{.picture = synth_picture(config, index), .file = {}};
  Image& image = out.picture.image;
  out.width = image.width;
  out.height = image.height;
  out.file = config.format == "png" ? encode_png(image)
                                    : encode_jpeg(image, static_cast<int>(config.quality));
  image = {};
  return out;
}

/// Takes the pictures in order.
class Sink {
 public:
  virtual ~Sink() = default;
  virtual void add(int64_t index, const EncodedPicture& picture) = 0;
  /// Makes the dataset appear at its place.
  virtual void commit() = 0;

  uint64_t size_bytes = 0;
  int64_t files = 0;
};

std::string file_name(const SynthConfig& config, int64_t index) {
  return digits(index, 8) + (config.format == "png" ? ".png" : ".jpg");
}

class FolderSink : public Sink {
 public:
  explicit FolderSink(const SynthConfig& config) : config_(config), folder_(config.out) {
    for (int64_t label = 0; label < config.classes; ++label) {
      folder_.make_subfolder(class_name(label, config.classes));
    }
    captions_.emplace(folder_.temp() + "/captions.jsonl");
  }

  void add(int64_t index, const EncodedPicture& encoded) override {
    const std::string path = str_cat(encoded.picture.class_name, "/", file_name(config_, index));
    folder_.write(path, encoded.file);
    size_bytes += encoded.file.size();
    ++files;
    io::Json line = io::Json::object();
    line.set("image_path", io::Json::string(path));
    io::Json& text = line.set("text", io::Json::array());
    for (int i = 0; i < 3; ++i) text.add(io::Json::string(encoded.picture.caption));
    captions_->write(io::dump_json(line) + "\n");
  }

  void commit() override {
    size_bytes += captions_->size();
    ++files;
    captions_->commit();
    captions_.reset();
    folder_.commit();
  }

 private:
  const SynthConfig& config_;
  detail::NewFolder folder_;
  std::optional<io::AtomicFile> captions_;
};

class TarSink : public Sink {
 public:
  explicit TarSink(const SynthConfig& config) : config_(config), tar_(config.out) {}

  void add(int64_t index, const EncodedPicture& encoded) override {
    tar_.add(str_cat(encoded.picture.class_name, "/", file_name(config_, index)), encoded.file);
  }

  void commit() override {
    size_bytes = tar_.commit();
    files = 1;
  }

 private:
  const SynthConfig& config_;
  detail::TarWriter tar_;
};

class ShardSink : public Sink {
 public:
  explicit ShardSink(const SynthConfig& config) : config_(config), folder_(config.out) {}

  void add(int64_t index, const EncodedPicture& encoded) override {
    const int64_t shard = index / config_.shard_size, row = index % config_.shard_size;
    if (row == 0) {
      finish_shard();
      tar_.emplace(str_cat(folder_.temp(), "/", digits(shard, 5), ".tar"));
    }
    const std::string key = digits(shard, 5) + digits(row, 4);
    const SynthPicture& picture = encoded.picture;
    io::Json json = io::Json::object();
    json.set("caption", io::Json::string(picture.caption));
    json.set("key", io::Json::string(key));
    json.set("status", io::Json::string("success"));
    json.set("width", io::Json::number(encoded.width));
    json.set("height", io::Json::number(encoded.height));
    json.set("class", io::Json::string(picture.class_name));
    json.set("label", io::Json::number(picture.label));
    tar_->add(key + (config_.format == "png" ? ".png" : ".jpg"), encoded.file);
    tar_->add(key + ".json", io::dump_json(json));
    tar_->add(key + ".txt", picture.caption);
  }

  void commit() override {
    finish_shard();
    folder_.commit();
  }

 private:
  void finish_shard() {
    if (!tar_) return;
    size_bytes += tar_->commit();
    ++files;
    tar_.reset();
  }

  const SynthConfig& config_;
  detail::NewFolder folder_;
  std::optional<detail::TarWriter> tar_;
};

std::unique_ptr<Sink> make_sink(const SynthConfig& config) {
  if (config.layout == "tar") return std::make_unique<TarSink>(config);
  if (config.layout == "shards") return std::make_unique<ShardSink>(config);
  return std::make_unique<FolderSink>(config);
}

}  // namespace

SynthPicture synth_picture(const SynthConfig& config, int64_t index) {
  check_picture_config(config);
  require(index >= 0, ErrorCode::kInvalidArgument, "picture ", index, ": expected 0 or more");
  Rng rng(config.seed, Purpose::kSynth, 0, static_cast<uint64_t>(index));
  const int64_t largest = std::max(config.size, config.max_size);
  detail::Scene scene{.width = rng.between(config.size, largest),
                      .height = rng.between(config.size, largest)};
  const int64_t label = index % config.classes;
  const ClassParts parts = parts_of(label, config.classes);
  const int64_t colour = rng.between(0, detail::kColours - 1);
  const int64_t texture = rng.between(0, detail::kTextures - 1);
  scene.shape = parts.shape;
  scene.colour = parts.colour >= 0 ? parts.colour : colour;
  scene.texture = parts.texture >= 0 ? parts.texture : texture;
  detail::draw_rest(scene, rng);
  return {.image = detail::paint(scene),
          .label = label,
          .class_name = class_name(label, config.classes),
          .caption = detail::describe(scene)};
}

SynthReport write_synth(const SynthConfig& config) {
  check_config(config);
  const auto begin = std::chrono::steady_clock::now();
  const auto sink = make_sink(config);
  Progress progress({.label = "synth", .unit = "images", .total = config.count});
  detail::for_each_in_order(
      config.count, config.workers, [&](int64_t index) { return encode_picture(config, index); },
      [&](int64_t index, const EncodedPicture& picture) {
        sink->add(index, picture);
        progress.update(index + 1);
      });
  sink->commit();
  progress.finish();
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
  return {.images = config.count,
          .size_bytes = sink->size_bytes,
          .files = sink->files,
          .seconds = elapsed.count()};
}

}  // namespace vgen::data
