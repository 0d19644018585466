#pragma once
// Images through a tokenizer and back, and how much of them survives: `vgen reconstruct`.

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "vgen/infer/load_tokenizer.h"
#include "vgen/io/json.h"

namespace vgen::eval {

struct ReconstructConfig {
  std::string model;                  ///< as infer::load_tokenizer
  std::vector<std::string> inputs;    ///< image files, folders and tars, in this order
  infer::TokenizerOptions tokenizer;  ///< weights, config, device, precision
  std::string split;                  ///< of every folder and tar, as data::DatasetConfig
  int64_t limit = 0;                  ///< take the first images only; 0 = all
  int64_t image_size = 0;             ///< side of the centre crop; 0 = of the run, else 256
  int64_t eval_size = 0;              ///< side of what is saved and measured; 0 = image_size
  int64_t batch_size = 8;             ///< images
  int64_t threads = 0;                ///< of LibTorch; 0 = one per core
  int64_t workers = 2;                ///< decoding threads
  int64_t min_side = 1;               ///< images with a shorter side below it count as broken
  std::string on_broken = "skip";     ///< skip, fail
  std::string out;                    ///< folder for the results; "" = only measure
  bool must_overwrite = false;        ///< replace older results in `out`
  int64_t grid_pairs = 32;            ///< originals beside their copies in grid.png; 0 = no grid
  std::string lpips_vgg, lpips_lin;   ///< weights of LPIPS; both "" = no LPIPS
};

/// Means are over images.
struct ReconstructResult {
  int64_t images = 0;
  int64_t broken = 0;     ///< left out
  int64_t identical = 0;  ///< copies equal to the original: their PSNR has no number
  double psnr = 0;        ///< dB, without the identical ones; NaN when there are no others
  double ssim = 0;        ///< data range 2, as published
  double ssim_data_range_1 = 0;
  double lpips = std::numeric_limits<double>::quiet_NaN();  ///< NaN: no weights given
  double codebook_usage = 0;                                ///< share of the codes that occurred
  double codebook_perplexity = 0;
  double seconds = 0;        ///< all of it, reading and writing too
  double model_seconds = 0;  ///< encoding and decoding
  io::Json settings;         ///< what was measured, and with what
};

/// Encodes and decodes every image and measures the copies as they are saved, 8 bit
/// (image_metrics.h; LPIPS too). If eval_size differs, original and copy are resized by LibTorch's
/// bicubic, without antialias, as LlamaGen's script does. Into `out` (io/result_folder.h), index =
/// order of the images that could be read:
///
///   000000.png ...   the copies
///   codes.npy        int64 (images, h, w)
///   grid.png         originals with their copies to the right, spread evenly over the images
///   scales.png       VAR's tokenizer: the first 8 images after each scale, coarse to fine, then as
///                    they are
///   images.jsonl     index, file, psnr, ssim, lpips of each image
///   metrics.json     the means and the settings; written last
///
/// Throws Error; then `out` is as it was.
ReconstructResult reconstruct(const ReconstructConfig& config);

/// What metrics.json holds.
io::Json result_json(const ReconstructResult& result);
/// A table for people.
std::string format_result(const ReconstructResult& result);

}  // namespace vgen::eval
