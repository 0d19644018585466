#include "vgen/tokenizer/blocks.h"

#include <cmath>

namespace vgen::tokenizer {

ResBlockImpl::ResBlockImpl(int64_t in_channels, int64_t out_channels, double dropout_p)
    : dropout_p_(dropout_p) {
  norm1_ = register_module("norm1", nn::GroupNorm(in_channels));
  conv1_ = register_module("conv1", nn::Conv2d(nn::conv3x3(in_channels, out_channels)));
  norm2_ = register_module("norm2", nn::GroupNorm(out_channels));
  conv2_ = register_module("conv2", nn::Conv2d(nn::conv3x3(out_channels, out_channels)));
  if (in_channels != out_channels) {
    nin_shortcut_ =
        register_module("nin_shortcut", nn::Conv2d(nn::conv1x1(in_channels, out_channels)));
  }
}

torch::Tensor ResBlockImpl::forward(const torch::Tensor& x_BCHW) {
  const torch::Tensor shortcut_BCHW = nin_shortcut_ ? nin_shortcut_(x_BCHW) : x_BCHW;
  torch::Tensor h_BCHW = conv1_->forward_with(x_BCHW, {.norm_silu = norm1_.get()});
  if (dropout_p_ > 0 && is_training()) {
    h_BCHW = torch::dropout(norm2_->forward_silu(h_BCHW), dropout_p_, /*train=*/true);
    return conv2_->forward_with(h_BCHW, {.residual_BOHW = shortcut_BCHW});
  }
  return conv2_->forward_with(
      h_BCHW, {.norm_silu = norm2_.get(), .residual_BOHW = shortcut_BCHW, .is_input_spent = true});
}

AttnBlockImpl::AttnBlockImpl(int64_t channels, Layout layout) {
  norm_ = register_module("norm", nn::GroupNorm(channels));
  if (layout == Layout::kLlamaGen) {
    q_ = register_module("q", nn::Conv2d(nn::conv1x1(channels, channels)));
    k_ = register_module("k", nn::Conv2d(nn::conv1x1(channels, channels)));
    v_ = register_module("v", nn::Conv2d(nn::conv1x1(channels, channels)));
  } else {
    qkv_ = register_module("qkv", nn::Conv2d(nn::conv1x1(channels, 3 * channels)));
  }
  proj_out_ = register_module("proj_out", nn::Conv2d(nn::conv1x1(channels, channels)));
}

std::array<torch::Tensor, 3> AttnBlockImpl::project(const torch::Tensor& normed_BCHW) {
  // (B, C, H, W) -> (B, 1, H W, C); a view where the layout is channels-last
  const auto as_tokens = [](const torch::Tensor& t_BCHW) {
    return t_BCHW.flatten(2).transpose(1, 2).unsqueeze(1);
  };
  if (qkv_) {
    const auto parts = as_tokens(qkv_(normed_BCHW)).chunk(3, -1);
    return {parts[0], parts[1], parts[2]};
  }
  return {as_tokens(q_(normed_BCHW)), as_tokens(k_(normed_BCHW)), as_tokens(v_(normed_BCHW))};
}

torch::Tensor AttnBlockImpl::forward(const torch::Tensor& x_BCHW) {
  const int64_t height = x_BCHW.size(2), width = x_BCHW.size(3);
  const auto [q, k, v] = project(norm_(x_BCHW));
  const torch::Tensor out_B1TC = at::scaled_dot_product_attention(q, k, v);
  const torch::Tensor out_BCHW = out_B1TC.squeeze(1).transpose(1, 2).unflatten(2, {height, width});
  return proj_out_->forward_with(out_BCHW, {.residual_BOHW = x_BCHW});
}

DownsampleImpl::DownsampleImpl(int64_t channels) {
  nn::Conv2dOptions options = nn::conv3x3(channels, channels);
  options.stride = 2;
  options.is_padded_at_end = true;
  conv_ = register_module("conv", nn::Conv2d(options));
}

torch::Tensor DownsampleImpl::forward(const torch::Tensor& x_BCHW) { return conv_(x_BCHW); }

UpsampleImpl::UpsampleImpl(int64_t channels) {
  conv_ = register_module("conv", nn::Conv2d(nn::conv3x3(channels, channels)));
}

torch::Tensor UpsampleImpl::forward(const torch::Tensor& x_BCHW) {
  return conv_->forward_with(x_BCHW, {.is_upsampled = true});
}

}  // namespace vgen::tokenizer
