#pragma once
// The convolutional encoder and decoder of the VQGAN. B batch, H height, W width, Z latent
// channels, h = H / downsample, w = W / downsample. Parameter names are LlamaGen's.

#include <torch/torch.h>

#include <vector>

#include "vgen/tokenizer/blocks.h"

namespace vgen::tokenizer {

struct VqganConfig;

/// One resolution: residual blocks, attention behind each of them at the deepest level only, then
/// the change of size (none at the last level).
class EncoderLevelImpl : public torch::nn::Module {
 public:
  struct Options {
    int64_t in_channels, out_channels, num_res_blocks;
    double dropout_p;
    bool has_attention, has_downsample;
  };
  explicit EncoderLevelImpl(const Options& options);
  torch::Tensor forward(torch::Tensor x_BCHW);

 private:
  std::vector<ResBlock> res_;
  std::vector<AttnBlock> attn_;
  Downsample downsample_{nullptr};
};
TORCH_MODULE(EncoderLevel);

class DecoderLevelImpl : public torch::nn::Module {
 public:
  struct Options {
    int64_t in_channels, out_channels, num_res_blocks;
    double dropout_p;
    bool has_attention, has_upsample;
  };
  explicit DecoderLevelImpl(const Options& options);
  torch::Tensor forward(torch::Tensor x_BCHW);

 private:
  std::vector<ResBlock> res_;
  std::vector<AttnBlock> attn_;
  Upsample upsample_{nullptr};
};
TORCH_MODULE(DecoderLevel);

/// Residual block, attention, residual block: children "0", "1", "2".
class MidBlocksImpl : public torch::nn::Module {
 public:
  MidBlocksImpl(int64_t channels, double dropout_p);
  torch::Tensor forward(torch::Tensor x_BCHW);

 private:
  ResBlock first_{nullptr}, last_{nullptr};
  AttnBlock attn_{nullptr};
};
TORCH_MODULE(MidBlocks);

class EncoderImpl : public torch::nn::Module {
 public:
  explicit EncoderImpl(const VqganConfig& config);
  /// image_B3HW: floating, its dtype is the compute dtype. Returns (B, Z, h, w) in that dtype.
  torch::Tensor forward(const torch::Tensor& image_B3HW);

 private:
  nn::Conv2d conv_in_{nullptr}, conv_out_{nullptr};
  std::vector<EncoderLevel> levels_;
  MidBlocks mid_{nullptr};
  nn::GroupNorm norm_out_{nullptr};
};
TORCH_MODULE(Encoder);

class DecoderImpl : public torch::nn::Module {
 public:
  explicit DecoderImpl(const VqganConfig& config);
  /// z_BZhw: the compute dtype. Returns the image (B, 3, H, W) in that dtype, not clamped.
  torch::Tensor forward(const torch::Tensor& z_BZhw);

  /// The weight that the adaptive discriminator weight looks at.
  const torch::Tensor& last_weight() const { return conv_out_->weight; }

 private:
  nn::Conv2d conv_in_{nullptr}, conv_out_{nullptr};
  std::vector<DecoderLevel> levels_;  ///< in execution order, deepest first, as the keys count
  MidBlocks mid_{nullptr};
  nn::GroupNorm norm_out_{nullptr};
};
TORCH_MODULE(Decoder);

}  // namespace vgen::tokenizer
