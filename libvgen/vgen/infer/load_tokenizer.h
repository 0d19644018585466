#pragma once
// Trained image tokenizers, ready for use: from runs of vgen, from official checkpoints, from any
// file with their weights. B batch, H height, W width in pixels.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace vgen::infer {

/// Images to codes and back, in evaluation mode, without gradients. All that callers need to know
/// of a tokenizer, whichever it is. May be used from several threads.
class ImageTokenizer {
 public:
  virtual ~ImageTokenizer() = default;

  /// image_B3HW: floating, in [-1, 1], any device, H and W multiples of downsample(). Returns
  /// int64 codes (B, code_shape(H, W)...) on the model's device. Throws Error(kInvalidArgument).
  virtual at::Tensor encode(const at::Tensor& image_B3HW) const = 0;

  /// code: (B, ...) with as many codes per image as code_shape(height, width) has, any integer
  /// dtype and device. Returns float32 (B, 3, height, width) on the model's device, not clamped.
  /// Throws Error(kInvalidArgument) for another number of codes or a code beyond the codebook.
  virtual at::Tensor decode(const at::Tensor& code, int64_t height, int64_t width) const = 0;

  /// The pictures that a tokenizer of several scales makes of its scales 0 to k, k = 0, 1, ...,
  /// coarse to fine, each float32 (B, 3, H, W); empty for one of a single scale.
  virtual std::vector<at::Tensor> decode_scales(const at::Tensor& /*code*/) const { return {}; }

  /// Shape of the codes of one image: {h, w} in raster order for a VQGAN; {L} for several scales.
  virtual std::vector<int64_t> code_shape(int64_t height, int64_t width) const = 0;

  /// Sides of the scales; empty for a single one.
  virtual std::vector<int64_t> patch_nums() const { return {}; }

  virtual int64_t codebook_size() const = 0;
  virtual int64_t downsample() const = 0;  ///< pixels per code along each side

  /// "vqgan-<16 hexadecimal digits>", see fingerprint.h: equal for tokenizers that give equal
  /// codes, whatever file, device or precision. Reads all weights at each call.
  virtual std::string fingerprint() const = 0;

  virtual std::string kind() const = 0;         ///< "vqgan", "msvqvae"
  virtual std::string config_yaml() const = 0;  ///< the `model:` section that makes this model
};

struct TokenizerOptions {
  /// auto: averaged weights (EMA) where there are any, else the model's, the order of the official
  /// evaluation script. ema, model: these or none. Else the name of a dict inside a .pt file.
  std::string weights = "auto";
  /// A YAML file with a `model:` section or its fields alone, or VQ-16, VQ-8. "": the config.yaml
  /// of the run, for one file of a run's checkpoint as well; for other files the config is read off
  /// the weights.
  std::string config = "";
  /// Sides of the scales of VAR's tokenizer, where neither a run nor `config` tells them but the
  /// transformer that it serves. Weights that tell their own (multi_scale_config.h) serve no
  /// others.
  std::vector<int64_t> patch_nums = {};
  std::string device = "auto";     ///< as parse_device
  std::string precision = "fp32";  ///< as parse_precision: what encoder and decoder compute in
};

struct LoadedTokenizer {
  std::unique_ptr<ImageTokenizer> model;
  std::string source;      ///< the file that the weights come from
  std::string weights;     ///< "ema", "model", or the dict of a .pt file
  int64_t step = -1;       ///< optimizer steps of a run's checkpoint; -1 = unknown
  int64_t image_size = 0;  ///< what a run was trained at, pixels; 0 = unknown
};

/// `path`: a run folder (its newest valid checkpoint), a checkpoint folder, or a file or folder
/// that io::load_state_dict reads. Names and shapes must fit the config exactly, only the usage
/// buffers may be there or not (`quantize.codebook_used`; `quantize.ema_vocab_hit_SV`: of another
/// number of scales it is passed over with a warning, but refused beside the config of its run).
/// The weights may lie in the mapped file; pages of weights that are computed with in a narrower
/// dtype take no memory after their first use. Throws Error: kNotFound (no such file, no such
/// weights in it), kInvalidArgument (another architecture: what differs; other scales than the file
/// tells), kDataCorrupt, kUnavailable.
LoadedTokenizer load_tokenizer(const std::string& path, const TokenizerOptions& options = {});

}  // namespace vgen::infer
