#include "vgen/codes/code_dataset.h"

#include <algorithm>
#include <filesystem>
#include <optional>

#include "vgen/codes/code_shard.h"
#include "vgen/codes/official_layout.h"
#include "vgen/core/error.h"
#include "vgen/core/log.h"

namespace vgen::codes {
namespace {

namespace fs = std::filesystem;

/// The shards of one folder.
class ShardedSource : public CodeDataset::Source {
 public:
  ShardedSource(const std::string& folder, const OpenOptions& options)
      : index_(read_index(folder)) {
    for (const ShardEntry& entry : index_.shards) {
      ends_.push_back(entry.images + (ends_.empty() ? 0 : ends_.back()));
      const std::string path = str_cat(folder, "/", entry.file);
      try {
        shards_.push_back(open_checked(path, entry));
      } catch (const Error& error) {
        if (options.on_broken == "fail") throw;
        log_warning("broken shard, its ", entry.images, " images are left out: ", error.what());
        shards_.push_back({.shard = {}, .problem = error.what()});
      }
    }
  }

  const CodeInfo& info() const override { return index_.info; }
  int64_t size() const override { return index_.num_images; }

  void read(int64_t index, size_t crop_set, int64_t crop,
            std::span<int64_t> code_T) const override {
    const auto [shard, row] = find(index);
    shard->read(row, index_.info.first_crop(crop_set) + crop, index_.info.codebook_size, code_T);
  }
  int64_t label(int64_t index) const override {
    const auto [shard, row] = find(index);
    return shard->label(row);
  }
  std::string name(int64_t index) const override {
    const auto [shard, row] = find(index);
    return shard->name(row);
  }
  int64_t image_index(int64_t index) const override {
    const auto [shard, row] = find(index);
    return shard->image(row);
  }

 private:
  struct Opened {
    std::optional<Shard> shard;
    std::string problem;
  };

  Opened open_checked(const std::string& path, const ShardEntry& entry) const {
    std::error_code error;
    const auto size = fs::file_size(path, error);
    require(!error, ErrorCode::kNotFound, path, ": is missing");
    require(static_cast<int64_t>(size) == entry.size_bytes, ErrorCode::kDataCorrupt, path, ": has ",
            size, " bytes, expected ", entry.size_bytes);
    Shard shard = open_shard(path);
    const CodeInfo& info = index_.info;
    require(shard.size() == entry.images && shard.num_crops() == info.num_crops() &&
                shard.num_tokens() == info.num_tokens() && shard.codes.dtype == info.dtype(),
            ErrorCode::kDataCorrupt, path, ": its codes are ", io::dtype_name(shard.codes.dtype),
            " ", format_shape(shard.codes.shape), ", expected ", io::dtype_name(info.dtype()), " ",
            format_shape({entry.images, info.num_crops(), info.num_tokens()}));
    if (const auto difference = first_difference(shard.settings, index_.settings)) {
      throw_error(ErrorCode::kDataCorrupt, path, ": belongs to another extraction: ", *difference);
    }
    const auto num_classes = static_cast<int64_t>(info.classes.size());
    for (const int32_t label : shard.labels.as<int32_t>()) {
      require(label >= -1 && label < num_classes, ErrorCode::kDataCorrupt, path, ": has the label ",
              label, ", but the index has ", num_classes, " classes");
    }
    return {.shard = std::move(shard), .problem = {}};
  }

  std::pair<const Shard*, int64_t> find(int64_t index) const {
    const auto end = std::ranges::upper_bound(ends_, index);
    require(index >= 0 && end != ends_.end(), ErrorCode::kInternal, "image ", index, " of ",
            size());
    const auto place = static_cast<size_t>(end - ends_.begin());
    const Opened& opened = shards_[place];
    require(opened.shard.has_value(), ErrorCode::kDataCorrupt, opened.problem);
    return {&*opened.shard, index - (place == 0 ? 0 : ends_[place - 1])};
  }

  CodeIndex index_;
  std::vector<Opened> shards_;
  std::vector<int64_t> ends_;  // images in the shards up to and with each one
};

std::unique_ptr<CodeDataset::Source> open_source(const std::string& path,
                                                 const OpenOptions& options) {
  require(!path.empty(), ErrorCode::kInvalidArgument,
          "no codes: give the folder that `vgen extract` wrote");
  require(fs::is_directory(path), ErrorCode::kNotFound, path,
          ": no such folder; expected what `vgen extract --out` wrote");
  if (fs::exists(str_cat(path, "/", kIndexName))) {
    return std::make_unique<ShardedSource>(path, options);
  }
  int64_t shards = 0;
  for (const auto& entry : fs::directory_iterator(path)) {
    const std::string name = entry.path().filename().string();
    shards += name.starts_with("shard-") && name.ends_with(".safetensors");
  }
  require(shards == 0, ErrorCode::kNotFound, path, ": holds ", shards, " shards but no ",
          kIndexName,
          ": the extraction is not finished; run the same `vgen extract` again, it "
          "goes on where it stopped");
  return open_official(path, options);
}

}  // namespace

CodeDataset::CodeDataset(std::unique_ptr<Source> source) : source_(std::move(source)) {}
CodeDataset::CodeDataset(CodeDataset&&) noexcept = default;
CodeDataset& CodeDataset::operator=(CodeDataset&&) noexcept = default;
CodeDataset::~CodeDataset() = default;

CodeDataset CodeDataset::open(const std::string& path, const OpenOptions& options) {
  require(options.on_broken == "skip" || options.on_broken == "fail", ErrorCode::kInvalidArgument,
          "on_broken '", options.on_broken, "': expected skip or fail");
  require(options.second_set == "auto" || options.second_set == "off", ErrorCode::kInvalidArgument,
          "second_set '", options.second_set, "': expected auto or off");
  CodeDataset dataset(open_source(path, options));
  require(dataset.size() >= 1, ErrorCode::kInvalidArgument, path, ": holds no images");
  return dataset;
}

const CodeInfo& CodeDataset::info() const { return source_->info(); }
int64_t CodeDataset::size() const { return source_->size(); }
void CodeDataset::read(int64_t index, size_t crop_set, int64_t crop,
                       std::span<int64_t> code_T) const {
  source_->read(index, crop_set, crop, code_T);
}
int64_t CodeDataset::label(int64_t index) const { return source_->label(index); }
std::string CodeDataset::name(int64_t index) const { return source_->name(index); }
int64_t CodeDataset::image_index(int64_t index) const { return source_->image_index(index); }

}  // namespace vgen::codes
