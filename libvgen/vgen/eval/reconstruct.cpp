#include "vgen/eval/reconstruct.h"

#include <ATen/Parallel.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <memory>
#include <optional>

#include "vgen/checkpoint/named_tensors.h"
#include "vgen/core/error.h"
#include "vgen/core/log.h"
#include "vgen/data/image.h"
#include "vgen/data/loader.h"
#include "vgen/eval/image_metrics.h"
#include "vgen/eval/load_lpips.h"
#include "vgen/eval/pictures.h"
#include "vgen/io/npy.h"
#include "vgen/io/result_folder.h"
#include "vgen/tensor/device.h"
#include "vgen/tensor/image.h"
#include "vgen/tensor/tf32.h"

namespace vgen::eval {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr int64_t kDefaultImageSize = 256;
constexpr int64_t kMinSsimSide = 7;
constexpr int64_t kScaleRows = 8;  // images in scales.png
constexpr int64_t kMinLpipsSide = 16;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// "000012.png"
bool is_result(const std::string& name) {
  return name == "codes.npy" || name == "grid.png" || name == "scales.png" ||
         name == "images.jsonl" || name == "metrics.json" || is_picture_name(name);
}

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

void check_config(const ReconstructConfig& config) {
  const auto at_least = [](const char* what, int64_t value, int64_t low) {
    require(value >= low, ErrorCode::kInvalidArgument, what, " ", value, ": expected at least ",
            low);
  };
  require(!config.inputs.empty(), ErrorCode::kInvalidArgument,
          "nothing to reconstruct: name image files, folders or tars");
  at_least("limit", config.limit, 0);
  at_least("image size", config.image_size, 0);
  at_least("eval size", config.eval_size, 0);
  at_least("batch size", config.batch_size, 1);
  at_least("grid", config.grid_pairs, 0);
  std::error_code error;
  for (const std::string& input : config.inputs) {
    const bool is_there = fs::exists(input, error);
    require(!error, ErrorCode::kUnavailable, input, ": cannot be read: ", error.message());
    require(is_there, ErrorCode::kNotFound, input,
            ": no such file or folder; expected images, a folder or a tar of images");
    require(config.out.empty() || !fs::equivalent(input, config.out, error),
            ErrorCode::kInvalidArgument, config.out,
            ": is an input, it cannot take the results too; choose another folder");
  }
}

/// The sides of what goes in and of what is measured.
struct Sizes {
  int64_t image = 0;
  int64_t eval = 0;
};

Sizes choose_sizes(const ReconstructConfig& config, const infer::LoadedTokenizer& tokenizer) {
  Sizes sizes;
  sizes.image = config.image_size > 0      ? config.image_size
                : tokenizer.image_size > 0 ? tokenizer.image_size
                                           : kDefaultImageSize;
  sizes.eval = config.eval_size > 0 ? config.eval_size : sizes.image;
  const int64_t factor = tokenizer.model->downsample();
  const int64_t below = sizes.image / factor * factor;
  require(sizes.image % factor == 0, ErrorCode::kInvalidArgument, "image size ", sizes.image, ": ",
          tokenizer.source, " needs a multiple of ", factor, " pixels, such as ",
          below > 0 ? below : factor, "; choose one with --image-size");
  const bool has_lpips = !config.lpips_vgg.empty() || !config.lpips_lin.empty();
  const int64_t least = has_lpips ? kMinLpipsSide : kMinSsimSide;
  require(sizes.eval >= least, ErrorCode::kInvalidArgument, "images of ", sizes.eval,
          " pixels are too small to measure: ", has_lpips ? "LPIPS" : "SSIM", " needs at least ",
          least, "; choose --image-size or --eval-size");
  return sizes;
}

/// The inputs in their order; files that follow each other share a loader.
std::vector<data::Loader> open_inputs(const ReconstructConfig& config, int64_t image_size,
                                      bool pin_memory) {
  data::DataConfig data;
  data.image_size = image_size;
  data.min_side = config.min_side;
  data.on_broken = config.on_broken;
  data.workers = config.workers;
  const data::LoaderOptions options{.batch_size = config.batch_size, .pin_memory = pin_memory};

  std::vector<data::Loader> loaders;
  std::vector<std::string> files;
  const auto flush_files = [&] {
    if (files.empty()) return;
    data.val = {.path = files.size() == 1 ? files[0] : str_cat(files.size(), " files")};
    loaders.push_back(data::Loader::for_validation(data, options, data::Dataset::of_files(files)));
    files.clear();
  };
  for (const std::string& input : config.inputs) {
    if (fs::is_directory(input) || data::Dataset::is_tar_name(input)) {
      flush_files();
      data.val = {.path = input, .split = config.split};
      loaders.push_back(data::Loader::for_validation(data, options));
      continue;
    }
    require(config.split.empty(), ErrorCode::kInvalidArgument, input, ": is a file, but a split ('",
            config.split, "') is part of a folder or a tar");
    files.push_back(input);
  }
  flush_files();
  return loaders;
}

class Reconstruction {
 public:
  explicit Reconstruction(const ReconstructConfig& config);
  ReconstructResult run();

 private:
  void take(const data::ImageBatch& batch, const data::Dataset& dataset);
  void measure(const at::Tensor& copy_BHW3, const at::Tensor& image_B3HW);
  void record(const at::Tensor& copy_BHW3, const data::ImageBatch& batch,
              const data::Dataset& dataset);
  void add_to_grid(const at::Tensor& image_B3HW, const at::Tensor& copy_BHW3);
  void add_to_scales(const at::Tensor& image_B3HW, const at::Tensor& code);
  void write_results();
  io::Json settings() const;

  const ReconstructConfig& config_;
  int threads_;
  std::unique_ptr<io::ResultFolder> out_;  // none: only measure
  infer::LoadedTokenizer tokenizer_;
  Sizes sizes_;
  tokenizer::Lpips lpips_{nullptr};
  std::vector<data::Loader> loaders_;
  int64_t total_ = 0;

  CodeUsage usage_;
  ReconstructResult result_;
  double psnr_sum_ = 0, ssim_sum_ = 0, ssim_1_sum_ = 0, lpips_sum_ = 0;
  std::vector<ImageMetrics> batch_metrics_;
  std::vector<double> batch_lpips_;
  std::vector<at::Tensor> codes_;
  std::vector<at::Tensor> grid_;
  std::vector<at::Tensor> scales_;  // the pictures of scales.png, row by row
  std::string lines_;               // images.jsonl
};

Reconstruction::Reconstruction(const ReconstructConfig& config)
    : config_(config),
      threads_(set_num_threads(static_cast<int>(config.threads))),
      out_(config.out.empty()
               ? nullptr
               : std::make_unique<io::ResultFolder>(
                     config.out, io::ResultFolder::Options{.may_replace = config.must_overwrite,
                                                           .last = "metrics.json",
                                                           .is_result = is_result})),
      tokenizer_(infer::load_tokenizer(config.model, config.tokenizer)),
      sizes_(choose_sizes(config, tokenizer_)),
      usage_(tokenizer_.model->codebook_size()) {
  const c10::Device device = parse_device(config.tokenizer.device);
  if (!config.lpips_vgg.empty() || !config.lpips_lin.empty()) {
    lpips_ = load_lpips(config.lpips_vgg, config.lpips_lin);
    lpips_->to(device);
  }
  loaders_ = open_inputs(config, sizes_.image, device.is_cuda());
  for (const data::Loader& loader : loaders_) total_ += loader.dataset().size();
  if (config.limit > 0) total_ = std::min(total_, config.limit);
}

ReconstructResult Reconstruction::run() {
  const auto begin = Clock::now();
  Progress progress({.label = "reconstruct", .unit = "images", .total = total_});
  const auto fields = [&] {
    const int64_t measured = result_.images - result_.identical;
    return measured == 0
               ? std::string()
               : str_cat("psnr ", format_fixed(psnr_sum_ / static_cast<double>(measured), 2));
  };
  for (data::Loader& loader : loaders_) {
    while (result_.images < total_) {
      const auto batch = loader.next_in_pass();
      if (!batch) break;
      take(*batch, loader.dataset());
      progress.update(std::min(total_, result_.images + result_.broken + loader.stats().broken),
                      fields());
    }
    result_.broken += loader.stats().broken;
  }
  const auto images = static_cast<double>(result_.images);
  result_.psnr = psnr_sum_ / static_cast<double>(result_.images - result_.identical);
  result_.ssim = ssim_sum_ / images;
  result_.ssim_data_range_1 = ssim_1_sum_ / images;
  if (lpips_) result_.lpips = lpips_sum_ / images;
  result_.codebook_usage = usage_.usage();
  result_.codebook_perplexity = usage_.perplexity();
  result_.settings = settings();
  result_.seconds = seconds_since(begin);
  if (out_) write_results();
  progress.finish(fields());
  return result_;
}

void Reconstruction::take(const data::ImageBatch& batch, const data::Dataset& dataset) {
  const int64_t size = std::min(batch.image_B3HW.size(0), total_ - result_.images);
  at::Tensor image_B3HW = batch.image_B3HW.narrow(0, 0, size);
  const auto begin = Clock::now();
  const at::Tensor code = tokenizer_.model->encode(image_B3HW);
  at::Tensor copy_B3HW = tokenizer_.model->decode(code, sizes_.image, sizes_.image).cpu();
  result_.model_seconds += seconds_since(begin);
  usage_.add(code);
  if (out_) codes_.push_back(code.cpu());

  if (sizes_.eval != sizes_.image) {  // quirk: no antialias, also when it shrinks
    const std::vector<int64_t> size_HW{sizes_.eval, sizes_.eval};
    image_B3HW = at::upsample_bicubic2d(image_B3HW, size_HW, /*align_corners=*/false);
    copy_B3HW = at::upsample_bicubic2d(copy_B3HW.contiguous(), size_HW, /*align_corners=*/false);
  }
  const at::Tensor copy_BHW3 = to_uint8(copy_B3HW);
  measure(copy_BHW3, image_B3HW);
  record(copy_BHW3, batch, dataset);
  if (out_) add_to_grid(image_B3HW, copy_BHW3);
  if (out_) add_to_scales(image_B3HW, code);
  result_.images += size;
}

void Reconstruction::measure(const at::Tensor& copy_BHW3, const at::Tensor& image_B3HW) {
  const int64_t size = copy_BHW3.size(0);
  batch_metrics_.assign(static_cast<size_t>(size), {});
  batch_lpips_.clear();
  const at::Tensor truth_B3HW = ((image_B3HW + 1) / 2).contiguous();
  at::parallel_for(0, size, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      batch_metrics_[static_cast<size_t>(i)] = compare_images(copy_BHW3[i], truth_B3HW[i]);
      if (out_) out_->write(picture_name(result_.images + i), encode_png(copy_BHW3[i]));
    }
  });
  if (!lpips_) return;
  const auto device = lpips_->buffers().front().device();
  const at::Tensor saved_B3HW = copy_BHW3.permute({0, 3, 1, 2}).to(at::kFloat) / 127.5 - 1;
  const at::Tensor distance_B = lpips_->forward(image_B3HW.to(device), saved_B3HW.to(device))
                                    .flatten()
                                    .to(at::kDouble)
                                    .cpu()
                                    .contiguous();
  const double* values = distance_B.const_data_ptr<double>();
  batch_lpips_.assign(values, values + size);
}

void Reconstruction::record(const at::Tensor& copy_BHW3, const data::ImageBatch& batch,
                            const data::Dataset& dataset) {
  for (int64_t i = 0; i < copy_BHW3.size(0); ++i) {
    const auto at = static_cast<size_t>(i);
    const ImageMetrics& metrics = batch_metrics_[at];
    if (std::isinf(metrics.psnr)) {
      ++result_.identical;
    } else {
      psnr_sum_ += metrics.psnr;
    }
    ssim_sum_ += metrics.ssim;
    ssim_1_sum_ += metrics.ssim_data_range_1;
    if (lpips_) lpips_sum_ += batch_lpips_[at];
    if (!out_) continue;
    io::Json line = io::Json::object();
    line.set("index", io::Json::number(result_.images + i));
    line.set("file", io::Json::string(dataset.where(batch.index[at])));
    line.set("psnr", io::Json::number(metrics.psnr));
    line.set("ssim", io::Json::number(metrics.ssim));
    line.set("ssim_data_range_1", io::Json::number(metrics.ssim_data_range_1));
    if (lpips_) line.set("lpips", io::Json::number(batch_lpips_[at]));
    lines_ += io::dump_json(line) + "\n";
  }
}

/// Datasets are often sorted by class: the pairs are spread evenly over all images.
void Reconstruction::add_to_grid(const at::Tensor& image_B3HW, const at::Tensor& copy_BHW3) {
  const int64_t pairs = std::min(config_.grid_pairs, total_);
  for (int64_t i = 0; i < copy_BHW3.size(0); ++i) {
    const int64_t index = result_.images + i;
    const int64_t place = index * pairs / total_, last = (index - 1) * pairs / total_;
    if (pairs == 0 || (index > 0 && place == last)) continue;
    grid_.push_back(to_uint8(image_B3HW.narrow(0, i, 1))[0]);
    grid_.push_back(copy_BHW3[i]);
  }
}

/// The first images, each after every scale, coarse to fine, and as it is.
void Reconstruction::add_to_scales(const at::Tensor& image_B3HW, const at::Tensor& code) {
  const int64_t size = std::min(kScaleRows - result_.images, code.size(0));
  const auto num_scales = static_cast<int64_t>(tokenizer_.model->patch_nums().size());
  if (num_scales == 0 || size <= 0) return;
  const auto scales = tokenizer_.model->decode_scales(code.narrow(0, 0, size));
  for (int64_t i = 0; i < size; ++i) {
    for (const at::Tensor& scale_B3HW : scales) {
      scales_.push_back(to_uint8(scale_B3HW.narrow(0, i, 1))[0]);
    }
    const std::vector<int64_t> shape{sizes_.image, sizes_.image};
    at::Tensor original = image_B3HW.narrow(0, i, 1);
    if (original.size(2) != sizes_.image) original = at::upsample_bicubic2d(original, shape, false);
    scales_.push_back(to_uint8(original)[0]);
  }
}

void Reconstruction::write_results() {
  if (!scales_.empty()) {
    const auto columns = static_cast<int64_t>(tokenizer_.model->patch_nums().size()) + 1;
    out_->write("scales.png", encode_png(image_grid(at::stack(scales_), columns)));
  }
  if (!grid_.empty()) {
    const auto pairs = static_cast<double>(grid_.size()) / 2;
    const auto columns = 2 * std::max<int64_t>(1, std::llround(std::sqrt(pairs / 2)));
    out_->write("grid.png", encode_png(image_grid(at::stack(grid_), columns)));
  }
  io::write_npy(out_->file("codes.npy"), checkpoint::as_array(at::cat(codes_)));
  out_->write("images.jsonl", bytes_of(lines_));
  const std::string metrics = io::dump_json(result_json(result_), 1) + "\n";
  out_->write("metrics.json", bytes_of(metrics));
  out_->commit();
}

io::Json Reconstruction::settings() const {
  const infer::ImageTokenizer& model = *tokenizer_.model;
  io::Json json = io::Json::object();
  json.set("tokenizer", io::Json::string(tokenizer_.source));
  json.set("weights", io::Json::string(tokenizer_.weights));
  if (tokenizer_.step >= 0) json.set("step", io::Json::number(tokenizer_.step));
  json.set("fingerprint", io::Json::string(model.fingerprint()));
  json.set("codebook_size", io::Json::number(model.codebook_size()));
  json.set("downsample", io::Json::number(model.downsample()));
  io::Json& inputs = json.set("inputs", io::Json::array());
  for (const std::string& input : config_.inputs) inputs.add(io::Json::string(input));
  json.set("split", io::Json::string(config_.split));
  json.set("limit", io::Json::number(config_.limit));
  json.set("image_size", io::Json::number(sizes_.image));
  json.set("eval_size", io::Json::number(sizes_.eval));
  json.set("batch_size", io::Json::number(config_.batch_size));
  json.set("precision", io::Json::string(config_.tokenizer.precision));
  const c10::Device device = parse_device(config_.tokenizer.device);
  json.set("device", io::Json::string(device.str()));
  if (uses_tf32(device)) json.set("allow_tf32", io::Json::boolean(true));
  json.set("threads", io::Json::number(int64_t{threads_}));
  return json;
}

}  // namespace

ReconstructResult reconstruct(const ReconstructConfig& config) {
  const at::NoGradGuard no_grad;
  check_config(config);
  return Reconstruction(config).run();
}

io::Json result_json(const ReconstructResult& result) {
  using io::Json;
  const auto images = static_cast<double>(result.images);
  Json json = Json::object();
  json.set("images", Json::number(result.images));
  json.set("broken", Json::number(result.broken));
  json.set("identical", Json::number(result.identical));
  json.set("psnr", Json::number(result.psnr));
  json.set("ssim", Json::number(result.ssim));
  json.set("ssim_data_range_1", Json::number(result.ssim_data_range_1));
  if (!std::isnan(result.lpips)) json.set("lpips", Json::number(result.lpips));
  json.set("codebook_usage", Json::number(result.codebook_usage));
  json.set("codebook_perplexity", Json::number(result.codebook_perplexity));
  json.set("images_per_second", Json::number(images / result.seconds));
  json.set("model_images_per_second", Json::number(images / result.model_seconds));
  json.set("seconds", Json::number(result.seconds));
  json.set("settings", result.settings);
  return json;
}

std::string format_result(const ReconstructResult& result) {
  const io::Json& settings = result.settings;
  const auto images = static_cast<double>(result.images);
  const int64_t side = settings.get_int("eval_size");
  std::string text = str_cat(
      "tokenizer  ", settings.get_string("tokenizer"), " (", settings.get_string("weights"),
      ")\nimages     ", format_count(static_cast<uint64_t>(result.images)), " of ", side, " x ",
      side, " pixels", result.broken > 0 ? str_cat(", ", result.broken, " broken left out") : "",
      "\nPSNR       ", std::isnan(result.psnr) ? "-" : format_fixed(result.psnr, 2), " dB",
      result.identical > 0 ? str_cat(", ", result.identical, " identical copies not counted") : "",
      "\nSSIM       ", format_fixed(result.ssim, 4), " as published (data range 2), ",
      format_fixed(result.ssim_data_range_1, 4), " with data range 1\n");
  if (!std::isnan(result.lpips)) {
    text += str_cat("LPIPS      ", format_fixed(result.lpips, 4), "\n");
  }
  return text + str_cat("codebook   ", format_fixed(100 * result.codebook_usage, 1), "% of ",
                        settings.get_int("codebook_size"), " codes used, perplexity ",
                        format_fixed(result.codebook_perplexity, 1), "\nspeed      ",
                        format_fixed(images / result.seconds, 1), " images/s, the model alone ",
                        format_fixed(images / result.model_seconds, 1), " (",
                        settings.get_string("precision"), ", ", settings.get_string("device"),
                        ")\n");
}

}  // namespace vgen::eval
