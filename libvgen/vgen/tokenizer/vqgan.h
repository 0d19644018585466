#pragma once
// LlamaGen's image tokenizer (arXiv:2406.06525; vq_model.py), VQ-8 and VQ-16 and any other widths.
// B batch, H height, W width, D code channels, h = H / downsample, w = W / downsample.

#include <torch/torch.h>

#include <memory>
#include <string>
#include <vector>

#include "vgen/core/config.h"
#include "vgen/tokenizer/encoder.h"
#include "vgen/tokenizer/quantizer.h"

namespace vgen::tokenizer {

struct VqganConfig {           // YAML section `model:`; the defaults are VQ-16
  int64_t ch = 128;            ///< base width, a multiple of 32
  int64_t num_res_blocks = 2;  ///< per encoder level; a decoder level has one more
  std::vector<int64_t> encoder_ch_mult = {1, 1, 2, 2, 4};
  std::vector<int64_t> decoder_ch_mult = {1, 1, 2, 2, 4};
  int64_t z_channels = 256;
  int64_t codebook_size = 16384;
  int64_t codebook_embed_dim = 8;
  bool codebook_l2_norm = true;
  bool codebook_show_usage = true;  ///< the checkpoint has `quantize.codebook_used`
  double commit_loss_beta = 0.25;
  double entropy_loss_ratio = 0.0;
  double dropout_p = 0.0;

  /// Pixels per code along each side: 2^(levels - 1).
  int64_t downsample() const { return int64_t{1} << (encoder_ch_mult.size() - 1); }
};

template <class Visitor>
void visit_fields(Visitor& v, VqganConfig& c) {
  v("ch", c.ch, at_least(1));
  v("num_res_blocks", c.num_res_blocks, at_least(1));
  v("encoder_ch_mult", c.encoder_ch_mult, at_least(1));
  v("decoder_ch_mult", c.decoder_ch_mult, at_least(1));
  v("z_channels", c.z_channels, at_least(1));
  v("codebook_size", c.codebook_size, at_least(1));
  v("codebook_embed_dim", c.codebook_embed_dim, at_least(1));
  v("codebook_l2_norm", c.codebook_l2_norm);
  v("codebook_show_usage", c.codebook_show_usage);
  v("commit_loss_beta", c.commit_loss_beta, at_least(0));
  v("entropy_loss_ratio", c.entropy_loss_ratio);
  v("dropout_p", c.dropout_p, between(0, 1));
}

/// "VQ-16" or "VQ-8". Throws Error(kInvalidArgument) for another name.
VqganConfig vqgan_preset(const std::string& name);

/// Throws Error(kInvalidArgument) where the fields do not fit together.
void validate(const VqganConfig& config);

/// The tokenizer. Parameter and buffer names are those of the official checkpoints.
/// Parameters are float32 always; set_compute_dtype() chooses what the convolutions compute in.
/// forward, encode and decode may be called from several threads in eval mode.
class VqganImpl : public torch::nn::Module {
 public:
  explicit VqganImpl(const VqganConfig& config);

  struct Output {
    torch::Tensor image_B3HW;  ///< reconstruction, float32, not clamped
    Quantized quantized;
  };
  /// decode(encode(image)), differentiable.
  Output forward(const torch::Tensor& image_B3HW);

  /// image_B3HW: floating, in [-1, 1], H and W multiples of downsample(): Error(kInvalidArgument).
  Quantized encode(const torch::Tensor& image_B3HW);
  /// What encode() quantizes: float32 (B, D, h, w).
  torch::Tensor encode_latent(const torch::Tensor& image_B3HW);
  /// quant_BDhw: what encode() or the codebook gives. Returns float32 (B, 3, H, W), not clamped.
  torch::Tensor decode(const torch::Tensor& quant_BDhw);
  /// index: B h w codes in (b, y, x) order, any shape and integer dtype.
  torch::Tensor decode_code(const torch::Tensor& index, int64_t batch, int64_t height,
                            int64_t width);

  /// kFloat32 (default), kBFloat16 or kHalf for encoder and decoder; the quantizer is always
  /// float32. Replaces autocast: there is no other switch.
  void set_compute_dtype(torch::ScalarType dtype);
  torch::ScalarType compute_dtype() const { return compute_dtype_; }

  /// Levels and middles of encoder and decoder, in the order in which they run.
  std::vector<std::shared_ptr<torch::nn::Module>> blocks() const;

  const VqganConfig& config() const { return config_; }
  Encoder encoder{nullptr};
  Decoder decoder{nullptr};
  VectorQuantizer quantize{nullptr};

 private:
  VqganConfig config_;
  torch::ScalarType compute_dtype_ = torch::kFloat32;
  nn::Conv2d quant_conv_{nullptr}, post_quant_conv_{nullptr};
};
TORCH_MODULE(Vqgan);

}  // namespace vgen::tokenizer
