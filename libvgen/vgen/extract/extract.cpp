#include "vgen/extract/extract.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>

#include "vgen/codes/code_shard.h"
#include "vgen/codes/official_layout.h"
#include "vgen/core/error.h"
#include "vgen/core/log.h"
#include "vgen/core/threads.h"
#include "vgen/data/image.h"
#include "vgen/data/transforms.h"
#include "vgen/extract/crops.h"
#include "vgen/extract/detail/crop_stream.h"
#include "vgen/io/crc32c.h"
#include "vgen/tensor/device.h"
#include "vgen/tensor/tf32.h"

namespace vgen::extract {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using codes::CodeInfo;
using io::Json;

constexpr int64_t kDefaultImageSize = 256;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

void check_config(const ExtractConfig& config) {
  const auto at_least = [](const char* what, int64_t value, int64_t low) {
    require(value >= low, ErrorCode::kInvalidArgument, what, " ", value, ": expected at least ",
            low);
  };
  require(!config.out.empty(), ErrorCode::kInvalidArgument,
          "no folder for the codes: choose one with --out");
  require(!config.crops.empty(), ErrorCode::kInvalidArgument,
          "no crops: expected center, center_flip, ten_crop:RANGE or five_crop:RANGE");
  require(config.on_broken == "skip" || config.on_broken == "fail", ErrorCode::kInvalidArgument,
          "on_broken '", config.on_broken, "': expected skip or fail");
  at_least("image size", config.image_size, 1);
  at_least("limit", config.limit, 0);
  at_least("batch size", config.batch_size, 1);
  at_least("shard size", config.shard_size, 1);
  check_worker_count("workers", config.workers);
  at_least("verify", config.verify, 0);
  std::error_code error;
  require(!fs::equivalent(config.input.path, config.out, error), ErrorCode::kInvalidArgument,
          config.out, ": is the input, it cannot take the codes too; choose another folder");
}

CodeInfo make_info(const infer::ImageTokenizer& tokenizer, const ExtractConfig& config) {
  const int64_t size = config.image_size, factor = tokenizer.downsample();
  require(size % factor == 0, ErrorCode::kInvalidArgument, "image size ", size,
          ": the tokenizer needs a multiple of ", factor, " pixels, such as ",
          std::max(size / factor, int64_t{1}) * factor);
  tokenizer.code_shape(size, size);  // or the complaint
  CodeInfo info{.tokenizer = tokenizer.fingerprint(),
                .codebook_size = tokenizer.codebook_size(),
                .image_size = size,
                .grid = {size / factor, size / factor},
                .patch_nums = tokenizer.patch_nums(),
                .crop_sets = {},
                .precision = config.tokenizer_options.precision,
                .classes = {}};
  for (const std::string& name : config.crops) {
    info.crop_sets.push_back(codes::parse_crop_set(name));
    const auto same = std::ranges::count(info.crop_sets, info.crop_sets.back());
    require(same == 1, ErrorCode::kInvalidArgument, "crops '", name, "' are asked for twice");
  }
  validate(info);
  return info;
}

/// CRC-32C over labels and names, so that another dataset is noticed.
std::string dataset_checksum(const data::Dataset& images, int64_t count) {
  uint32_t crc = 0;
  for (int64_t i = 0; i < count; ++i) {
    const std::string line = str_cat(images.label(i), " ", images.name(i), "\n");
    crc = io::crc32c(std::as_bytes(std::span(line)), crc);
  }
  return io::crc32c_text(crc);
}

class Extraction {
 public:
  Extraction(const infer::ImageTokenizer& tokenizer, const ExtractConfig& config,
             const dist::Launch& launch);
  ExtractResult run();

 private:
  int64_t num_shards() const { return (num_images_ + config_.shard_size - 1) / config_.shard_size; }
  int64_t end_of(int64_t shard) const {
    return std::min(num_images_, (shard + 1) * config_.shard_size);
  }
  std::string path_of(int64_t shard) const {
    return str_cat(config_.out, "/", codes::shard_name(shard));
  }
  bool is_finished(int64_t shard) const;
  void check_index() const;
  void remove_leftovers() const;
  std::vector<int64_t> find_missing_shards();
  void make_shard(int64_t shard, detail::CropStream& stream);
  void add_crops(std::vector<data::Image> crops);
  void encode_batch();
  void take_codes();
  std::string rate() const;
  void write_official(int64_t shard) const;
  bool write_index();

  const infer::ImageTokenizer& tokenizer_;
  const ExtractConfig& config_;
  dist::Launch launch_;
  Clock::time_point begin_ = Clock::now();
  data::Dataset images_;
  int64_t num_images_;
  CodeInfo info_;
  Json settings_;
  std::unique_ptr<codes::OfficialWriter> official_;  // none: not asked for
  std::unique_ptr<Progress> progress_;
  int64_t images_done_ = 0;  // of this rank, kept ones too
  int64_t crops_done_ = 0;   // encoded by this run
  Clock::time_point encoding_began_;

  at::Tensor batch_B3HW_;  // crops to encode, `batch_fill_` of them
  int64_t batch_fill_ = 0;
  at::Tensor pending_;          // codes that the device may still be computing
  std::vector<int64_t> codes_;  // of the shard, image by image
  ExtractResult result_;
};

Extraction::Extraction(const infer::ImageTokenizer& tokenizer, const ExtractConfig& config,
                       const dist::Launch& launch)
    : tokenizer_(tokenizer),
      config_(config),
      launch_(launch),
      images_(data::Dataset::open(config.input)),
      num_images_(config.limit > 0 ? std::min(config.limit, images_.size()) : images_.size()),
      info_(make_info(tokenizer, config)),
      settings_(info_to_json(info_)) {
  info_.classes = images_.classes();
  settings_.set("shard_size", Json::number(config.shard_size));
  settings_.set("min_side", Json::number(config.min_side));
  if (uses_tf32(parse_device(config.tokenizer_options.device))) {
    settings_.set("allow_tf32", Json::boolean(true));
  }
  settings_.set("dataset_images", Json::number(num_images_));
  settings_.set("dataset_crc32c", Json::string(dataset_checksum(images_, num_images_)));
  if (!config.official_layout.empty()) {
    official_ = std::make_unique<codes::OfficialWriter>(config.official_layout, info_);
  }
  std::error_code error;
  fs::create_directories(config.out, error);
  require(!error, ErrorCode::kUnavailable, config.out, ": cannot be made: ", error.message());
  result_.tokenizer = info_.tokenizer;
}

/// An index of another extraction is told at once, not after hours.
void Extraction::check_index() const {
  if (!fs::exists(str_cat(config_.out, "/", codes::kIndexName))) return;
  std::optional<std::string> difference;
  try {
    difference = codes::first_difference(codes::read_index(config_.out).settings, settings_);
  } catch (const Error& error) {
    log_warning("written again: ", error.what());
    return;
  }
  require(!difference, ErrorCode::kInvalidArgument, config_.out,
          ": holds codes of another extraction: ", difference.value_or(""),
          "; choose another --out");
}

/// What a killed process of this rank left.
void Extraction::remove_leftovers() const {
  for (const auto& entry : fs::directory_iterator(config_.out)) {
    const std::string name = entry.path().filename().string();
    for (int64_t shard = launch_.rank; shard < num_shards(); shard += launch_.world_size) {
      if (!name.starts_with(".shard-") || !name.ends_with(".tmp")) break;
      std::error_code ignored;
      if (name.starts_with(str_cat(".", codes::shard_name(shard), "."))) {
        fs::remove(entry.path(), ignored);
      }
    }
  }
}

bool Extraction::is_finished(int64_t shard) const {
  const std::string path = path_of(shard);
  if (!fs::exists(path)) return false;
  try {
    codes::check_shard(path, info_, settings_);
    return true;
  } catch (Error& error) {
    if (error.code() == ErrorCode::kInvalidArgument) {  // not ours to replace
      throw_error(error.code(), error.what(), "; choose another --out");
    }
    log_warning("made again: ", error.what());
    return false;
  }
}

std::vector<int64_t> Extraction::find_missing_shards() {
  std::vector<int64_t> missing;
  for (int64_t shard = launch_.rank; shard < num_shards(); shard += launch_.world_size) {
    if (!is_finished(shard)) {
      missing.push_back(shard);
      continue;
    }
    ++result_.kept_shards;
    images_done_ += end_of(shard) - shard * config_.shard_size;
    if (official_) write_official(shard);
  }
  return missing;
}

ExtractResult Extraction::run() {
  check_index();
  remove_leftovers();
  const std::vector<int64_t> missing = find_missing_shards();
  std::vector<int64_t> images;
  for (const int64_t shard : missing) {
    for (int64_t i = shard * config_.shard_size; i < end_of(shard); ++i) images.push_back(i);
  }
  const int64_t total = images_done_ + static_cast<int64_t>(images.size());
  if (result_.kept_shards > 0) {
    log_info("extract: ", result_.kept_shards, " shards with ", images_done_, " of ", total,
             " images are there already");
  }
  progress_ = std::make_unique<Progress>(Progress::Options{
      .label = "extract", .unit = "images", .total = total, .start = images_done_});
  encoding_began_ = Clock::now();
  if (!missing.empty()) {
    detail::CropStream stream(std::move(images), config_.workers, [this](int64_t image) {
      try {
        const data::Image decoded = data::decode_image(images_.read(image));
        require(std::min(decoded.width, decoded.height) >= config_.min_side,
                ErrorCode::kDataCorrupt, "image of ", decoded.width, " x ", decoded.height,
                " is too small: expected at least ", config_.min_side, " pixels a side");
        return make_crops(decoded, config_.image_size, info_.crop_sets);
      } catch (Error& error) {
        error.add_context(images_.where(image));
        throw;
      }
    });
    for (const int64_t shard : missing) make_shard(shard, stream);
  }
  result_.crops_per_second = static_cast<double>(crops_done_) / seconds_since(encoding_began_);
  progress_->finish(rate());
  result_.images = images_done_ - result_.broken;
  result_.is_complete = write_index();
  if (result_.is_complete && config_.verify > 0) {
    const auto dataset = codes::CodeDataset::open(config_.out, {.on_broken = "fail"});
    result_.verify = verify(tokenizer_, dataset, images_, config_.verify, config_.batch_size);
  }
  result_.seconds = seconds_since(begin_);
  return result_;
}

/// Batches end with their shard, so its codes do not depend on where a run began.
void Extraction::make_shard(int64_t shard, detail::CropStream& stream) {
  codes_.clear();
  std::vector<int64_t> readable;
  for (int64_t i = shard * config_.shard_size; i < end_of(shard); ++i) {
    detail::Crops made = stream.next();
    require(made.image == i, ErrorCode::kInternal, "image ", made.image, " came for ", i);
    if (made.broken) {
      if (config_.on_broken == "fail") throw *made.broken;
      log_warning("skipped: ", made.broken->what());
      ++result_.broken;
    } else {
      readable.push_back(i);
      add_crops(std::move(made.crops));
    }
    ++images_done_;
    progress_->update(images_done_, rate());
  }
  encode_batch();
  take_codes();

  codes::ShardBuilder builder(info_);
  const auto codes_per_image = static_cast<size_t>(info_.num_crops() * info_.num_tokens());
  for (size_t i = 0; i < readable.size(); ++i) {
    const std::span<const int64_t> code_AT(codes_.data() + i * codes_per_image, codes_per_image);
    builder.add(readable[i], images_.label(readable[i]), images_.name(readable[i]), code_AT);
  }
  builder.write(config_.out, shard, settings_);
  ++result_.new_shards;
  if (official_) write_official(shard);
}

void Extraction::add_crops(std::vector<data::Image> crops) {
  const int64_t size = config_.image_size, floats = 3 * size * size;
  for (const data::Image& crop : crops) {
    if (!batch_B3HW_.defined()) {
      batch_B3HW_ = at::empty({config_.batch_size, 3, size, size}, at::kFloat);
    }
    float* to = batch_B3HW_.data_ptr<float>() + batch_fill_ * floats;
    data::to_float(crop, {to, static_cast<size_t>(floats)});
    if (++batch_fill_ == config_.batch_size) encode_batch();
  }
}

/// A device computes this batch while the next one is put together.
void Extraction::encode_batch() {
  if (batch_fill_ == 0) return;
  const at::Tensor codes = tokenizer_.encode(batch_B3HW_.narrow(0, 0, batch_fill_));
  crops_done_ += batch_fill_;
  batch_fill_ = 0;
  take_codes();
  pending_ = codes;
}

void Extraction::take_codes() {
  if (!pending_.defined()) return;
  const at::Tensor codes = pending_.cpu().contiguous();
  pending_.reset();
  const auto* values = codes.const_data_ptr<int64_t>();
  codes_.insert(codes_.end(), values, values + codes.numel());
}

/// "12.5 images/s, 125.0 crops/s"
std::string Extraction::rate() const {
  if (crops_done_ == 0) return "";
  const double crops = static_cast<double>(crops_done_) / seconds_since(encoding_began_);
  const auto num_crops = static_cast<double>(info_.num_crops());
  return str_cat(format_fixed(crops / num_crops, 1), " images/s",
                 num_crops > 1 ? str_cat(", ", format_fixed(crops, 1), " crops/s") : "");
}

/// From the finished shard, whatever of it is not there yet.
void Extraction::write_official(int64_t shard) const {
  const codes::Shard source = codes::open_shard(path_of(shard));
  const auto tokens = static_cast<size_t>(info_.num_tokens());
  std::vector<int64_t> code_AT(static_cast<size_t>(info_.num_crops()) * tokens);
  for (int64_t row = 0; row < source.size(); ++row) {
    if (official_->has(source.image(row))) continue;
    for (int64_t crop = 0; crop < info_.num_crops(); ++crop) {
      source.read(row, crop, info_.codebook_size,
                  std::span(code_AT).subspan(static_cast<size_t>(crop) * tokens, tokens));
    }
    official_->write(source.image(row), source.label(row), code_AT);
  }
}

/// False while shards of other ranks are missing: the rank that finishes last finds them all.
bool Extraction::write_index() {
  for (int64_t shard = 0; shard < num_shards(); ++shard) {
    if (fs::exists(path_of(shard))) continue;
    log_warning("rank ", launch_.rank, " of ", launch_.world_size, " is done, but ", path_of(shard),
                " of another rank is missing: the last rank to finish writes ", codes::kIndexName);
    return false;
  }
  codes::CodeIndex index{.info = info_, .settings = settings_};
  for (int64_t shard = 0; shard < num_shards(); ++shard) {
    index.shards.push_back(codes::check_shard(path_of(shard), info_, settings_));
    index.num_images += index.shards.back().images;
  }
  require(index.num_images > 0, ErrorCode::kDataCorrupt, config_.input.path, ": none of its ",
          num_images_, " images can be read (see the log)");
  codes::write_index(config_.out, index);
  result_.images = index.num_images;
  return true;
}

}  // namespace

ExtractResult extract_with(const infer::ImageTokenizer& tokenizer, const ExtractConfig& config,
                           const dist::Launch& launch) {
  check_config(config);
  return Extraction(tokenizer, config, launch).run();
}

ExtractResult extract(const ExtractConfig& config, const dist::Launch& launch) {
  set_num_threads(static_cast<int>(config.threads));
  ExtractConfig resolved = config;
  resolved.tokenizer_options.device =
      device_for_local_rank(config.tokenizer_options.device, launch.local_rank, num_cuda_devices());
  const auto tokenizer = infer::load_tokenizer(config.tokenizer, resolved.tokenizer_options);
  if (resolved.image_size == 0) {
    resolved.image_size = tokenizer.image_size > 0 ? tokenizer.image_size : kDefaultImageSize;
  }
  return extract_with(*tokenizer.model, resolved, launch);
}

}  // namespace vgen::extract
