#pragma once
// VAR's image tokenizer (arXiv:2404.02905; vqvae.py), its released model and any other widths.
// B batch, Z latent channels, S = image_size() pixels, h = S / downsample, K scales, L tokens: see
// multi_scale_quantizer.h. Images are in [-1, 1].

#include <torch/torch.h>

#include <memory>
#include <string>
#include <vector>

#include "vgen/core/config.h"
#include "vgen/tokenizer/encoder.h"
#include "vgen/tokenizer/multi_scale_quantizer.h"

namespace vgen::tokenizer {

struct MultiScaleVqvaeConfig {  // YAML section `model:`; the defaults are vae_ch160v4096z32 at 256
  int64_t ch = 160;             ///< base width, a multiple of 32
  int64_t num_res_blocks = 2;   ///< per encoder level; a decoder level has one more
  std::vector<int64_t> ch_mult = {1, 1, 2, 2,
                                  4};  ///< of encoder and decoder, full resolution first
  int64_t z_channels = 32;
  int64_t codebook_size = 4096;
  std::vector<int64_t> patch_nums = {1, 2, 3, 4, 5, 6, 8, 10, 13, 16};  ///< sides of the scales
  double commit_loss_beta = 0.25;
  int64_t quant_conv_kernel = 3;  ///< odd
  double quant_resi = 0.5;        ///< as in MultiScaleQuantizerConfig
  int64_t share_quant_resi = 4;
  double dropout_p = 0.0;

  /// Pixels per cell of the last scale along each side: 2^(levels - 1).
  int64_t downsample() const { return int64_t{1} << (ch_mult.size() - 1); }
  /// The only side of images, which are squares: patch_nums.back() * downsample().
  int64_t image_size() const { return patch_nums.back() * downsample(); }
};

template <class Visitor>
void visit_fields(Visitor& v, MultiScaleVqvaeConfig& c) {
  v("ch", c.ch, at_least(1));
  v("num_res_blocks", c.num_res_blocks, at_least(1));
  v("ch_mult", c.ch_mult, at_least(1));
  v("z_channels", c.z_channels, at_least(1));
  v("codebook_size", c.codebook_size, at_least(1));
  v("patch_nums", c.patch_nums, between(1, 1024));
  v("commit_loss_beta", c.commit_loss_beta, at_least(0));
  v("quant_conv_kernel", c.quant_conv_kernel, between(1, 15));
  v("quant_resi", c.quant_resi, between(-1, 1));
  v("share_quant_resi", c.share_quant_resi, between(0, 1024));
  v("dropout_p", c.dropout_p, between(0, 1));
}

/// Throws Error(kInvalidArgument) where the fields do not fit together.
void validate(const MultiScaleVqvaeConfig& config);

/// The tokenizer. Parameter and buffer names are those of the official checkpoints.
/// Parameters are float32 always; set_compute_dtype() chooses what the convolutions compute in.
/// All but a training forward may be called from several threads in eval mode.
class MultiScaleVqvaeImpl : public torch::nn::Module {
 public:
  explicit MultiScaleVqvaeImpl(const MultiScaleVqvaeConfig& config);

  struct Output {
    torch::Tensor image_B3SS;  ///< reconstruction, float32, not clamped
    MultiScaleQuantizerImpl::Output quantized;
  };
  /// Encodes, quantizes, decodes; differentiable. image_B3SS: floating, S = image_size():
  /// Error(kInvalidArgument) for any other size, here and below.
  Output forward(const torch::Tensor& image_B3SS) { return forward_until(image_B3SS, {}); }
  /// The same with sums of scales that end early: see MultiScaleQuantizerImpl::forward_until.
  Output forward_until(const torch::Tensor& image_B3SS, const torch::Tensor& last_scale_B);

  /// What is quantized: float32 (B, Z, h, h).
  torch::Tensor encode_latent(const torch::Tensor& image_B3SS);
  /// The codes, int64 (B, L). No gradient.
  torch::Tensor encode(const torch::Tensor& image_B3SS);
  /// With another schedule, which ends with the same side: (B, num_tokens(patch_nums)).
  torch::Tensor encode(const torch::Tensor& image_B3SS, const std::vector<int64_t>& patch_nums);

  // Images of these three are float32 (B, 3, S, S) and clamped to [-1, 1].

  /// fhat_BZhh: what the quantizer's latent() gives.
  torch::Tensor decode(const torch::Tensor& fhat_BZhh);
  /// index_BL: any integer dtype, each code in [0, V): Error(kInvalidArgument).
  torch::Tensor decode_code(const torch::Tensor& index_BL);
  /// What each scale adds: K images, the k-th of scales 0 to k.
  std::vector<torch::Tensor> decode_scales(const torch::Tensor& index_BL);

  /// kFloat32 (default), kBFloat16 or kHalf for encoder and decoder; the quantizer is always
  /// float32.
  void set_compute_dtype(torch::ScalarType dtype);
  torch::ScalarType compute_dtype() const { return compute_dtype_; }

  /// Levels and middles of encoder and decoder, in the order in which they run.
  std::vector<std::shared_ptr<torch::nn::Module>> blocks() const;

  const MultiScaleVqvaeConfig& config() const { return config_; }
  Encoder encoder{nullptr};
  Decoder decoder{nullptr};
  MultiScaleQuantizer quantize{nullptr};

 private:
  torch::Tensor decode_unclamped(const torch::Tensor& fhat_BZhh);

  MultiScaleVqvaeConfig config_;
  torch::ScalarType compute_dtype_ = torch::kFloat32;
  nn::Conv2d quant_conv_{nullptr}, post_quant_conv_{nullptr};
};
TORCH_MODULE(MultiScaleVqvae);

}  // namespace vgen::tokenizer
