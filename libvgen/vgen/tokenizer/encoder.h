#pragma once
// The convolutional encoder and decoder of the image tokenizers. B batch, H height, W width,
// Z latent channels, h = H / downsample, w = W / downsample. Parameter names are those of
// LlamaGen's or VAR's checkpoints: Layout.

#include <torch/torch.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "vgen/tokenizer/blocks.h"

namespace vgen::tokenizer {

/// One resolution: residual blocks, attention behind each of them at the deepest level only, then
/// the change of size.
class LevelImpl : public torch::nn::Module {
 public:
  enum class Resize { kNone, kDown, kUp };
  struct Options {
    int64_t in_channels = 0, out_channels = 0, num_res_blocks = 0;
    double dropout_p = 0;
    bool has_attention = false;
    Resize resize = Resize::kNone;
    Layout layout = Layout::kLlamaGen;
  };
  explicit LevelImpl(const Options& options);
  torch::Tensor forward(torch::Tensor x_BCHW);

 private:
  std::vector<ResBlock> res_;
  std::vector<AttnBlock> attn_;
  Downsample downsample_{nullptr};
  Upsample upsample_{nullptr};
};
TORCH_MODULE(Level);

/// Residual block, attention, residual block: children "0", "1", "2" (kLlamaGen) or "block_1",
/// "attn_1", "block_2" (kVar).
class MidBlocksImpl : public torch::nn::Module {
 public:
  MidBlocksImpl(int64_t channels, double dropout_p, Layout layout);
  torch::Tensor forward(torch::Tensor x_BCHW);

 private:
  ResBlock first_{nullptr}, last_{nullptr};
  AttnBlock attn_{nullptr};
};
TORCH_MODULE(MidBlocks);

/// Shape of an encoder or a decoder.
struct CoderConfig {
  int64_t ch = 128;                    ///< base width, a multiple of 32
  std::vector<int64_t> ch_mult = {1};  ///< width of each level over ch, full resolution first
  int64_t num_res_blocks = 2;          ///< per level
  int64_t z_channels = 256;
  double dropout_p = 0;
  Layout layout = Layout::kLlamaGen;
};

/// Levels are children of `conv_blocks` (kLlamaGen) or `down` (kVar), full resolution first.
class EncoderImpl : public torch::nn::Module {
 public:
  explicit EncoderImpl(const CoderConfig& config);
  /// image_B3HW: floating, its dtype is the compute dtype. Returns (B, Z, h, w) in that dtype.
  torch::Tensor forward(const torch::Tensor& image_B3HW);
  /// The levels and the middle, in the order in which they run, through run_block().
  std::vector<std::shared_ptr<torch::nn::Module>> blocks() const;

 private:
  nn::Conv2d conv_in_{nullptr}, conv_out_{nullptr};
  std::vector<Level> levels_;
  MidBlocks mid_{nullptr};
  nn::GroupNorm norm_out_{nullptr};
};
TORCH_MODULE(Encoder);

/// Levels are children of `conv_blocks`, deepest first (kLlamaGen), or of `up`, full resolution
/// first (kVar).
class DecoderImpl : public torch::nn::Module {
 public:
  explicit DecoderImpl(const CoderConfig& config);
  /// z_BZhw: the compute dtype. Returns the image (B, 3, H, W) in that dtype, not clamped.
  torch::Tensor forward(const torch::Tensor& z_BZhw);
  /// The middle and the levels, in the order in which they run, through run_block().
  std::vector<std::shared_ptr<torch::nn::Module>> blocks() const;

  /// The weight that the adaptive discriminator weight looks at. In no block.
  const torch::Tensor& last_weight() const { return conv_out_->weight; }

 private:
  nn::Conv2d conv_in_{nullptr}, conv_out_{nullptr};
  std::vector<Level> levels_;  ///< in execution order, deepest first
  MidBlocks mid_{nullptr};
  nn::GroupNorm norm_out_{nullptr};
};
TORCH_MODULE(Decoder);

}  // namespace vgen::tokenizer
