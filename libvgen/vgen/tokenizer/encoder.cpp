#include "vgen/tokenizer/encoder.h"

#include "vgen/tensor/block.h"

namespace vgen::tokenizer {
namespace {

/// Children "0", "1", ... under one name, as torch.nn.ModuleList counts them.
template <class Modules>
torch::nn::ModuleList as_list(const Modules& modules) {
  torch::nn::ModuleList list;
  for (const auto& module : modules) list->push_back(module);
  return list;
}

/// A level or the middle, as a block.
template <class Stage>
torch::Tensor run_stage(Stage& stage, torch::Tensor x_BCHW) {
  if (!has_block_runner()) return stage(std::move(x_BCHW));  // its memory may go before the end
  return run_block(*stage, {x_BCHW}, [impl = stage.get()](const std::vector<at::Tensor>& inputs) {
    return impl->forward(inputs[0]);
  });
}

}  // namespace

LevelImpl::LevelImpl(const Options& options) {
  for (int64_t i = 0; i < options.num_res_blocks; ++i) {
    const int64_t in_channels = i == 0 ? options.in_channels : options.out_channels;
    res_.emplace_back(in_channels, options.out_channels, options.dropout_p);
    if (options.has_attention) attn_.emplace_back(options.out_channels, options.layout);
  }
  register_module(options.layout == Layout::kVar ? "block" : "res", as_list(res_));
  register_module("attn", as_list(attn_));
  if (options.resize == Resize::kDown) {
    downsample_ = register_module("downsample", Downsample(options.out_channels));
  } else if (options.resize == Resize::kUp) {
    upsample_ = register_module("upsample", Upsample(options.out_channels));
  }
}

torch::Tensor LevelImpl::forward(torch::Tensor x_BCHW) {
  for (size_t i = 0; i < res_.size(); ++i) {
    x_BCHW = res_[i](x_BCHW);
    if (!attn_.empty()) x_BCHW = attn_[i](x_BCHW);
  }
  if (downsample_) return downsample_(x_BCHW);
  return upsample_ ? upsample_(x_BCHW) : x_BCHW;
}

MidBlocksImpl::MidBlocksImpl(int64_t channels, double dropout_p, Layout layout) {
  const bool is_var = layout == Layout::kVar;
  first_ = register_module(is_var ? "block_1" : "0", ResBlock(channels, channels, dropout_p));
  attn_ = register_module(is_var ? "attn_1" : "1", AttnBlock(channels, layout));
  last_ = register_module(is_var ? "block_2" : "2", ResBlock(channels, channels, dropout_p));
}

torch::Tensor MidBlocksImpl::forward(torch::Tensor x_BCHW) {
  x_BCHW = first_(x_BCHW);
  x_BCHW = attn_(x_BCHW);
  return last_(x_BCHW);
}

EncoderImpl::EncoderImpl(const CoderConfig& config) {
  const size_t num_levels = config.ch_mult.size();
  conv_in_ = register_module("conv_in", nn::Conv2d(nn::conv3x3(3, config.ch)));
  int64_t channels = config.ch;
  for (size_t level = 0; level < num_levels; ++level) {
    const int64_t out_channels = config.ch * config.ch_mult[level];
    const bool is_last = level + 1 == num_levels;
    levels_.emplace_back(
        LevelImpl::Options{.in_channels = channels,
                           .out_channels = out_channels,
                           .num_res_blocks = config.num_res_blocks,
                           .dropout_p = config.dropout_p,
                           .has_attention = is_last,
                           .resize = is_last ? LevelImpl::Resize::kNone : LevelImpl::Resize::kDown,
                           .layout = config.layout});
    channels = out_channels;
  }
  register_module(config.layout == Layout::kVar ? "down" : "conv_blocks", as_list(levels_));
  mid_ = register_module("mid", MidBlocks(channels, config.dropout_p, config.layout));
  norm_out_ = register_module("norm_out", nn::GroupNorm(channels));
  conv_out_ = register_module("conv_out", nn::Conv2d(nn::conv3x3(channels, config.z_channels)));
}

torch::Tensor EncoderImpl::forward(const torch::Tensor& image_B3HW) {
  torch::Tensor h_BCHW = conv_in_(image_B3HW);
  for (Level& level : levels_) h_BCHW = run_stage(level, std::move(h_BCHW));
  h_BCHW = run_stage(mid_, std::move(h_BCHW));
  return conv_out_->forward_with(h_BCHW, {.norm_silu = norm_out_.get(), .is_input_spent = true});
}

std::vector<std::shared_ptr<torch::nn::Module>> EncoderImpl::blocks() const {
  std::vector<std::shared_ptr<torch::nn::Module>> blocks;
  for (const Level& level : levels_) blocks.push_back(level.ptr());
  blocks.push_back(mid_.ptr());
  return blocks;
}

DecoderImpl::DecoderImpl(const CoderConfig& config) {
  const size_t num_levels = config.ch_mult.size();
  int64_t channels = config.ch * config.ch_mult.back();
  conv_in_ = register_module("conv_in", nn::Conv2d(nn::conv3x3(config.z_channels, channels)));
  mid_ = register_module("mid", MidBlocks(channels, config.dropout_p, config.layout));
  for (size_t level = num_levels; level-- > 0;) {
    const int64_t out_channels = config.ch * config.ch_mult[level];
    levels_.emplace_back(
        LevelImpl::Options{.in_channels = channels,
                           .out_channels = out_channels,
                           .num_res_blocks = config.num_res_blocks,
                           .dropout_p = config.dropout_p,
                           .has_attention = level + 1 == num_levels,
                           .resize = level == 0 ? LevelImpl::Resize::kNone : LevelImpl::Resize::kUp,
                           .layout = config.layout});
    channels = out_channels;
  }
  if (config.layout == Layout::kVar) {
    register_module("up", as_list(std::vector<Level>(levels_.rbegin(), levels_.rend())));
  } else {
    register_module("conv_blocks", as_list(levels_));
  }
  norm_out_ = register_module("norm_out", nn::GroupNorm(channels));
  conv_out_ = register_module("conv_out", nn::Conv2d(nn::conv3x3(channels, 3)));
}

torch::Tensor DecoderImpl::forward(const torch::Tensor& z_BZhw) {
  torch::Tensor h_BCHW = conv_in_(z_BZhw);
  h_BCHW = run_stage(mid_, std::move(h_BCHW));
  for (Level& level : levels_) h_BCHW = run_stage(level, std::move(h_BCHW));
  return conv_out_->forward_with(h_BCHW, {.norm_silu = norm_out_.get(), .is_input_spent = true});
}

std::vector<std::shared_ptr<torch::nn::Module>> DecoderImpl::blocks() const {
  std::vector<std::shared_ptr<torch::nn::Module>> blocks{mid_.ptr()};
  for (const Level& level : levels_) blocks.push_back(level.ptr());
  return blocks;
}

}  // namespace vgen::tokenizer
