#include "vgen/eval/sample.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <chrono>

#include "vgen/checkpoint/named_tensors.h"
#include "vgen/core/log.h"
#include "vgen/eval/pictures.h"
#include "vgen/eval/sample_session.h"
#include "vgen/infer/class_names.h"
#include "vgen/io/npy.h"
#include "vgen/io/result_folder.h"
#include "vgen/tensor/device.h"
#include "vgen/tensor/image.h"
#include "vgen/tensor/tf32.h"

namespace vgen::eval {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kMaxGridImages = 400;

bool is_result(const std::string& name) {
  if (name == "grid.png" || name == "codes.npy" || name == "samples.json") return true;
  return is_picture_name(name) || is_picture_name(name, "_scales");
}

class ImageSampling {
 public:
  explicit ImageSampling(const SampleImagesConfig& config)
      : config_(config),
        count_(config.count),
        folder_(config.out, {.may_replace = config.must_overwrite,
                             .last = "samples.json",
                             .is_result = is_result}) {}

  SampleResult run();

 private:
  void prepare();
  void draw_batch(int64_t first, int64_t size);
  void write_scales(int64_t index, int64_t b, const std::vector<at::Tensor>& scales_B3HW);
  io::Json describe(int64_t index) const;
  void write_summary(const SampleResult& result);
  void show_progress(int64_t new_tokens);

  const SampleImagesConfig& config_;
  int64_t count_;
  io::ResultFolder folder_;
  io::Json settings_;
  std::unique_ptr<SampleSession> session_;
  std::vector<std::string> names_;
  std::vector<int64_t> labels_;  // of the classes
  int64_t num_images_ = 0, tokens_done_ = 0;
  std::unique_ptr<Progress> progress_;
  Clock::time_point drawing_since_;
  std::vector<at::Tensor> codes_, grid_;
};

void ImageSampling::prepare() {
  session_ = std::make_unique<SampleSession>(config_.model);
  settings_ = session_->settings();
  settings_.set("image_size", io::Json::number(session_->image_size()));
  const c10::DeviceType device = parse_device(config_.model.device).type();
  settings_.set("device", io::Json::string(c10::DeviceTypeName(device, /*lower_case=*/true)));
  settings_.set("batch_size", io::Json::number(session_->batch_size()));
  const int64_t num_classes = session_->num_classes();
  names_ = config_.class_names.empty() ? infer::default_class_names(num_classes)
                                       : infer::read_class_names(config_.class_names, num_classes);
  labels_ = infer::parse_classes(config_.classes, num_classes, names_);
  num_images_ = static_cast<int64_t>(labels_.size()) * count_;
  progress_ = std::make_unique<Progress>(Progress::Options{
      .label = "sample", .unit = "tokens", .total = num_images_ * session_->num_tokens()});
}

io::Json ImageSampling::describe(int64_t index) const {
  io::Json json = io::Json::object();
  const int64_t label = labels_[index / count_];
  json.set("index", io::Json::number(index));
  json.set("class_id", io::Json::number(label));
  if (!names_.empty()) json.set("class_name", io::Json::string(names_[label]));
  return json;
}

void ImageSampling::show_progress(int64_t new_tokens) {
  tokens_done_ += new_tokens;
  const double seconds = std::chrono::duration<double>(Clock::now() - drawing_since_).count();
  const double rate = static_cast<double>(tokens_done_) / std::max(seconds, 1e-9);
  progress_->update(
      tokens_done_,
      str_cat(format_fixed(rate, 1), " tokens/s | ",
              format_fixed(rate / static_cast<double>(session_->num_tokens()), 2), " images/s"));
}

void ImageSampling::draw_batch(int64_t first, int64_t size) {
  std::vector<SampleSession::Image> images;
  for (int64_t i = first; i < first + size; ++i) {
    images.push_back({.index = static_cast<uint64_t>(i), .label = labels_[i / count_]});
  }
  const auto batch = session_->draw(
      images, [&](int64_t tokens) { show_progress(tokens); }, config_.show_scales);
  codes_.push_back(batch.code);
  const at::Tensor pixels_BHW3 = to_uint8(batch.image_B3HW);
  for (int64_t b = 0; b < size; ++b) {
    io::Json parameters = describe(first + b);
    for (const auto& [name, value] : settings_.members) parameters.set(name, value);
    folder_.write(picture_name(first + b), encode_drawn_png(pixels_BHW3[b], parameters));
    if (static_cast<int64_t>(grid_.size()) < kMaxGridImages) grid_.push_back(pixels_BHW3[b]);
    if (config_.show_scales) write_scales(first + b, b, batch.scales_B3HW);
  }
}

// What the picture was after each scale, side by side.
void ImageSampling::write_scales(int64_t index, int64_t b,
                                 const std::vector<at::Tensor>& scales_B3HW) {
  std::vector<at::Tensor> pictures;
  for (const at::Tensor& image_B3HW : scales_B3HW) {
    pictures.push_back(to_uint8(image_B3HW.slice(0, b, b + 1))[0]);
  }
  const at::Tensor row = image_grid(at::stack(pictures), static_cast<int64_t>(pictures.size()));
  folder_.write(picture_name(index, "_scales"), encode_png(row));
}

void ImageSampling::write_summary(const SampleResult& result) {
  const auto in_grid = static_cast<int64_t>(grid_.size());
  const int64_t columns =
      count_ > 1 ? std::min<int64_t>(count_, 20) : std::min<int64_t>(in_grid, 8);
  folder_.write("grid.png", encode_png(image_grid(at::stack(grid_), columns)));
  io::write_npy(folder_.file("codes.npy"), checkpoint::as_array(at::cat(codes_)));
  io::Json json = io::Json::object();
  json.set("settings", settings_);
  json.set("engine", io::Json::string(session_->description()));
  json.set("tokens_per_second",
           io::Json::number(static_cast<double>(result.tokens) / result.generate_seconds));
  json.set("load_seconds", io::Json::number(result.load_seconds));
  json.set("seconds_to_first_token", result.first_token_seconds
                                         ? io::Json::number(*result.first_token_seconds)
                                         : io::Json::null());
  json.set("generate_seconds", io::Json::number(result.generate_seconds));
  json.set("decode_seconds", io::Json::number(result.decode_seconds));
  io::Json images = io::Json::array();
  for (int64_t i = 0; i < num_images_; ++i) {
    io::Json image = describe(i);
    image.set("file", io::Json::string(picture_name(i)));
    images.add(std::move(image));
  }
  json.set("images", std::move(images));
  const std::string text = io::dump_json(json, 1) + "\n";
  folder_.write("samples.json", std::as_bytes(std::span(text.data(), text.size())));
}

SampleResult ImageSampling::run() {
  const auto start = Clock::now();
  prepare();
  drawing_since_ = Clock::now();
  for (int64_t first = 0; first < num_images_; first += session_->batch_size()) {
    draw_batch(first, std::min(session_->batch_size(), num_images_ - first));
  }
  SampleResult result = session_->times();
  result.images = num_images_;
  write_summary(result);
  folder_.commit();
  result.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  progress_->finish(format_result(result));
  return result;
}

}  // namespace

io::Json settings_json(const SampleConfig& config) {
  const SampleSettings& settings = config.settings;
  const auto given = [](const auto& value) {
    return value ? io::Json::number(*value) : io::Json::string("auto");
  };
  io::Json json = io::Json::object();
  json.set("checkpoint", io::Json::string(config.checkpoint));
  json.set("weights", io::Json::string(config.gpt.weights));
  json.set("config", io::Json::string(config.gpt.config));
  json.set("n_head", io::Json::number(config.gpt.n_head));
  json.set("tokenizer", io::Json::string(config.tokenizer));
  json.set("tokenizer_weights", io::Json::string(config.decoder.weights));
  json.set("tokenizer_config", io::Json::string(config.decoder.config));
  json.set("tokenizer_precision", io::Json::string(config.decoder.precision));
  json.set("seed", io::Json::unsigned_number(settings.seed));
  json.set("cfg_scale", given(settings.cfg_scale));
  json.set("cfg_interval", io::Json::number(settings.cfg_interval));
  json.set("temperature", io::Json::number(settings.temperature));
  json.set("top_k", given(settings.top_k));
  json.set("top_p", given(settings.top_p));
  if (settings.more_smooth) json.set("more_smooth", io::Json::boolean(true));
  json.set("precision", io::Json::string(config.precision));
  if (uses_tf32(parse_device(config.device))) json.set("allow_tf32", io::Json::boolean(true));
  return json;
}

std::string format_result(const SampleResult& result) {
  const double images = static_cast<double>(result.images);
  return str_cat(format_count(result.images), " images, load ",
                 format_fixed(result.load_seconds, 2), " s, tokens ",
                 format_fixed(result.generate_seconds, 2), " s (",
                 format_fixed(static_cast<double>(result.tokens) / result.generate_seconds, 1),
                 " tokens/s), decode ", format_fixed(result.decode_seconds, 2), " s, ",
                 format_fixed(images / result.seconds, 2), " images/s in all");
}

SampleResult sample_images(const SampleImagesConfig& config) {
  require(config.count >= 1, ErrorCode::kInvalidArgument, "count ", config.count,
          ": expected at least 1");
  return ImageSampling(config).run();
}

}  // namespace vgen::eval
