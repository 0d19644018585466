#pragma once
// Building blocks of the autoencoders of LlamaGen (vq_model.py) and VAR (basic_vae.py), which
// differ in names and in the projections of attention. B batch, C channels, H height, W width.
// Parameter names are the official ones.

#include <torch/torch.h>

#include <array>

#include "vgen/nn/conv2d.h"
#include "vgen/nn/group_norm.h"

namespace vgen::tokenizer {

/// Whose parameter names an autoencoder has.
enum class Layout { kLlamaGen, kVar };

/// out = shortcut(x) + conv2(drop(silu(norm2(conv1(silu(norm1(x))))))); the shortcut is a 1x1
/// convolution where the width changes, else the identity.
class ResBlockImpl : public torch::nn::Module {
 public:
  ResBlockImpl(int64_t in_channels, int64_t out_channels, double dropout_p);
  torch::Tensor forward(const torch::Tensor& x_BCHW);

 private:
  double dropout_p_;
  nn::GroupNorm norm1_{nullptr}, norm2_{nullptr};
  nn::Conv2d conv1_{nullptr}, conv2_{nullptr}, nin_shortcut_{nullptr};
};
TORCH_MODULE(ResBlock);

/// Single-head self-attention over all positions, scale C^-0.5, with a residual connection.
/// kLlamaGen: 1x1 convolutions `q`, `k`, `v`; kVar: one `qkv` (3C, C, 1, 1), in this order.
class AttnBlockImpl : public torch::nn::Module {
 public:
  AttnBlockImpl(int64_t channels, Layout layout);
  torch::Tensor forward(const torch::Tensor& x_BCHW);

 private:
  /// Queries, keys and values, each (B, 1, H W, C).
  std::array<torch::Tensor, 3> project(const torch::Tensor& normed_BCHW);

  nn::GroupNorm norm_{nullptr};
  nn::Conv2d q_{nullptr}, k_{nullptr}, v_{nullptr}, qkv_{nullptr}, proj_out_{nullptr};
};
TORCH_MODULE(AttnBlock);

/// 3x3 convolution of stride 2. quirk: one row of zeros below and one column to the right, none
/// above and to the left.
class DownsampleImpl : public torch::nn::Module {
 public:
  explicit DownsampleImpl(int64_t channels);
  torch::Tensor forward(const torch::Tensor& x_BCHW);

 private:
  nn::Conv2d conv_{nullptr};
};
TORCH_MODULE(Downsample);

/// Nearest-neighbour doubling, then a 3x3 convolution.
class UpsampleImpl : public torch::nn::Module {
 public:
  explicit UpsampleImpl(int64_t channels);
  torch::Tensor forward(const torch::Tensor& x_BCHW);

 private:
  nn::Conv2d conv_{nullptr};
};
TORCH_MODULE(Upsample);

}  // namespace vgen::tokenizer
