#include <ATen/Functions.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>

#include "vgen/checkpoint/named_tensors.h"
#include "vgen/codes/code_shard.h"
#include "vgen/core/log.h"
#include "vgen/eval/model_identity.h"
#include "vgen/eval/sample.h"
#include "vgen/eval/sample_session.h"
#include "vgen/io/atomic_file.h"
#include "vgen/io/mapped_file.h"
#include "vgen/io/npy.h"
#include "vgen/tensor/device.h"
#include "vgen/tensor/image.h"

namespace vgen::eval {

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr int64_t kPartImages = 64;

class FidSampling {
 public:
  explicit FidSampling(const SampleFidConfig& config)
      : config_(config),
        folder_(config.npz + ".parts"),
        settings_path_(folder_ + "/settings.json"),
        num_parts_((config.num_images + kPartImages - 1) / kPartImages) {}

  SampleResult run();

 private:
  std::string part_path(int64_t part) const;
  int64_t part_size(int64_t part) const {
    return std::min(kPartImages, config_.num_images - part * kPartImages);
  }
  io::Json settings() const;
  void check_settings(const io::Json& settings) const;
  void make_folder(const io::Json& settings) const;
  bool is_done(int64_t part) const;
  void draw_part(int64_t part);
  void write_npz() const;

  const SampleFidConfig& config_;
  std::string folder_, settings_path_;
  int64_t num_parts_;
  std::unique_ptr<SampleSession> session_;
  std::unique_ptr<Progress> progress_;
  int64_t images_done_ = 0, images_drawn_ = 0;
  Clock::time_point drawing_since_;
};

std::string FidSampling::part_path(int64_t part) const {
  char name[32];
  std::snprintf(name, sizeof(name), "/part_%06lld.npy", static_cast<long long>(part));
  return folder_ + name;
}

// All that the images depend on.
io::Json FidSampling::settings() const {
  io::Json json = settings_json(config_.model);
  json.set("num_images", io::Json::number(config_.num_images));
  json.set("image_size", io::Json::number(config_.model.image_size));
  json.set("eval_size", io::Json::number(config_.eval_size));
  const c10::Device device = parse_device(config_.model.device);
  json.set("device", io::Json::string(c10::DeviceTypeName(device.type(), /*lower_case=*/true)));
  // On the CPU an image's codes do not depend on those beside it.
  if (!device.is_cpu()) json.set("batch_size", io::Json::number(config_.model.batch_size));
  for (const auto& [name, value] : identify_models(config_.model).members) json.set(name, value);
  return json;
}

void FidSampling::check_settings(const io::Json& settings) const {
  const std::string text = io::read_text_file(settings_path_);
  io::Json found;
  try {
    found = io::parse_json(text);
  } catch (Error& error) {
    error.add_context(settings_path_);
    throw;
  }
  const auto difference = codes::first_difference(found, settings);
  require(!difference, ErrorCode::kInvalidArgument, settings_path_,
          ": parts drawn with other settings are there: ", difference.value_or(""),
          "; repeat the command that they were begun with, or remove the folder ", folder_);
}

// Ranks that start together write the same text, so it does not matter who is last.
void FidSampling::make_folder(const io::Json& settings) const {
  std::error_code error;
  fs::create_directories(folder_, error);
  require(!error, ErrorCode::kUnavailable, folder_, ": cannot be made: ", error.message());
  if (!fs::exists(settings_path_)) {
    io::write_file_atomically(settings_path_, io::dump_json(settings, 1) + "\n");
  }
  check_settings(settings);
}

// Parts are written atomically: one that is there is whole.
bool FidSampling::is_done(int64_t part) const {
  const std::string path = part_path(part);
  if (!fs::exists(path)) return false;
  const io::Array array = io::read_npy(path);
  const std::vector<int64_t> expected = {part_size(part), config_.eval_size, config_.eval_size, 3};
  require(array.dtype == io::Dtype::kUInt8 && array.shape == expected, ErrorCode::kDataCorrupt,
          path, ": holds ", io::dtype_name(array.dtype), " ", format_shape(array.shape),
          ", expected uint8 ", format_shape(expected), "; remove it");
  return true;
}

void FidSampling::draw_part(int64_t part) {
  std::vector<at::Tensor> pixels;
  const int64_t size = part_size(part), batch_size = session_->batch_size();
  for (int64_t first = 0; first < size; first += batch_size) {
    std::vector<SampleSession::Image> images;
    for (int64_t i = first; i < std::min(size, first + batch_size); ++i) {
      const int64_t index = part * kPartImages + i;
      images.push_back(
          {.index = static_cast<uint64_t>(index), .label = index % session_->num_classes()});
    }
    at::Tensor image_B3HW = session_->draw(images, {}).image_B3HW;
    if (image_B3HW.size(2) != config_.eval_size) {
      image_B3HW = at::upsample_bicubic2d(image_B3HW, {config_.eval_size, config_.eval_size},
                                          /*align_corners=*/false);
    }
    pixels.push_back(to_uint8(image_B3HW));
    images_done_ += static_cast<int64_t>(images.size());
    images_drawn_ += static_cast<int64_t>(images.size());
    const double seconds = std::chrono::duration<double>(Clock::now() - drawing_since_).count();
    const double rate = static_cast<double>(images_drawn_) / std::max(seconds, 1e-9);
    progress_->update(images_done_,
                      str_cat(format_fixed(rate, 2), " images/s | ",
                              format_fixed(rate * session_->num_tokens(), 1), " tokens/s"));
  }
  io::write_npy(part_path(part), checkpoint::as_array(at::cat(pixels)));
}

// One process at a time: the one that comes second finds nothing left to do.
void FidSampling::write_npz() const {
  const int lock = ::open(settings_path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (lock < 0) return;
  const auto unlock = [](const int* fd) { ::close(*fd); };
  const std::unique_ptr<const int, decltype(unlock)> guard(&lock, unlock);
  ::flock(lock, LOCK_EX);
  if (!fs::exists(part_path(0))) return;
  io::NpzWriter writer(config_.npz);
  writer.begin("arr_0", io::Dtype::kUInt8,
               {config_.num_images, config_.eval_size, config_.eval_size, 3});
  for (int64_t part = 0; part < num_parts_; ++part)
    writer.write(io::read_npy(part_path(part)).data);
  writer.end();
  writer.finish();
  std::error_code error;
  fs::remove_all(folder_, error);
}

SampleResult FidSampling::run() {
  const auto start = Clock::now();
  if (config_.rank >= num_parts_) {
    log_info("sample: rank ", config_.rank, " has no part to draw, there are ", num_parts_);
    return {};
  }
  if (fs::exists(config_.npz) && !fs::exists(folder_)) {
    throw_error(ErrorCode::kInvalidArgument, config_.npz,
                ": is there already; remove it to draw the images again");
  }
  const io::Json settings = this->settings();
  if (fs::exists(settings_path_)) check_settings(settings);
  std::vector<int64_t> todo;
  int64_t own_images = 0;
  for (int64_t part = config_.rank; part < num_parts_; part += config_.world_size) {
    own_images += part_size(part);
    if (is_done(part)) {
      images_done_ += part_size(part);
    } else {
      todo.push_back(part);
    }
  }
  SampleResult result;
  if (!todo.empty()) {
    session_ = std::make_unique<SampleSession>(config_.model);
    make_folder(settings);  // now that the session has found nothing wrong with them
    progress_ = std::make_unique<Progress>(Progress::Options{
        .label = "sample", .unit = "images", .total = own_images, .start = images_done_});
    drawing_since_ = Clock::now();
    for (const int64_t part : todo) draw_part(part);
    result = session_->times();
    progress_.reset();
  }
  result.images = images_drawn_;
  bool is_complete = true;
  for (int64_t part = 0; part < num_parts_ && is_complete; ++part) is_complete = is_done(part);
  if (is_complete) {
    write_npz();
    log_info("sample: ", config_.npz, ": ", config_.num_images, " images");
  } else {
    log_info("sample: this process has no parts left to draw, others have; ", config_.npz,
             " is written by the last one");
  }
  result.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return result;
}

}  // namespace

SampleResult sample_fid(const SampleFidConfig& config) {
  require(!config.model.settings.more_smooth, ErrorCode::kInvalidArgument,
          "more-smooth: mixtures of codes are for pictures, not for FID; leave it out");
  require(config.num_images >= 1, ErrorCode::kInvalidArgument, "fid ", config.num_images,
          ": expected at least 1 image");
  require(config.eval_size >= 1, ErrorCode::kInvalidArgument, "eval-size ", config.eval_size,
          ": expected at least 1");
  require(config.world_size >= 1 && config.rank >= 0 && config.rank < config.world_size,
          ErrorCode::kInvalidArgument, "rank ", config.rank, " of ", config.world_size,
          ": expected 0 to ", config.world_size - 1);
  require(config.npz.ends_with(".npz"), ErrorCode::kInvalidArgument, "npz '", printable(config.npz),
          "': expected a file name that ends in .npz");
  SampleFidConfig resolved = config;
  resolved.model.device =
      device_for_local_rank(config.model.device, config.local_rank, num_cuda_devices());
  return FidSampling(resolved).run();
}

}  // namespace vgen::eval
