#include "vgen/tokenizer/discriminator.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "vgen/core/error.h"
#include "vgen/nn/batch_norm.h"
#include "vgen/tensor/block.h"

namespace vgen::tokenizer {
namespace {

constexpr double kSlope = 0.2;

nn::Conv2d make_conv(int64_t in_channels, int64_t out_channels, int64_t kernel_size, int64_t stride,
                     int64_t padding, bool use_bias = true) {
  return nn::Conv2d(nn::Conv2dOptions{.in_channels = in_channels,
                                      .out_channels = out_channels,
                                      .kernel_size = kernel_size,
                                      .stride = stride,
                                      .padding = padding,
                                      .use_bias = use_bias});
}

torch::nn::LeakyReLU leaky_relu() {
  return torch::nn::LeakyReLU(torch::nn::LeakyReLUOptions().negative_slope(kSlope));
}

/// Channels of the StyleGAN discriminator at one resolution.
int64_t stylegan_width(int64_t resolution) {
  return resolution <= 32 ? 512 : 512 * 32 / resolution;
}

/// Depthwise (1, 2, 1) x (1, 2, 1) / 16, the border reflected.
class BlurImpl : public torch::nn::Module {
 public:
  BlurImpl() { f_ = register_buffer("f", torch::tensor({1.f, 2.f, 1.f})); }

  torch::Tensor forward(const torch::Tensor& x_BCHW) {
    const int64_t channels = x_BCHW.size(1);
    const torch::Tensor kernel = (f_.unsqueeze(1) * f_ / f_.sum().square()).to(x_BCHW.dtype());
    const torch::Tensor padded_BCHW = at::reflection_pad2d(x_BCHW, {1, 1, 1, 1});
    return at::convolution(padded_BCHW, kernel.expand({channels, 1, 3, 3}), /*bias=*/{},
                           /*stride=*/{1, 1}, /*padding=*/{0, 0}, /*dilation=*/{1, 1},
                           /*transposed=*/false, /*output_padding=*/{0, 0}, /*groups=*/channels);
  }

 private:
  torch::Tensor f_;
};
TORCH_MODULE(Blur);

/// Halves the resolution: (blurred, strided convolution branch + strided 1x1) / sqrt(2).
class StyleGanBlockImpl : public torch::nn::Module {
 public:
  StyleGanBlockImpl(int64_t in_channels, int64_t out_channels) {
    conv_res_ = register_module("conv_res", make_conv(in_channels, out_channels, 1, 2, 0));
    net_ = register_module(
        "net", torch::nn::Sequential(make_conv(in_channels, out_channels, 3, 1, 1), leaky_relu(),
                                     make_conv(out_channels, out_channels, 3, 1, 1), leaky_relu()));
    downsample_ = register_module(
        "downsample",
        torch::nn::Sequential(Blur(), make_conv(out_channels, out_channels, 3, 2, 1)));
  }

  torch::Tensor forward(const torch::Tensor& x_BCHW) {
    return (downsample_->forward(net_->forward(x_BCHW)) + conv_res_(x_BCHW)) / std::sqrt(2.0);
  }

 private:
  nn::Conv2d conv_res_{nullptr};
  torch::nn::Sequential net_{nullptr}, downsample_{nullptr};
};
TORCH_MODULE(StyleGanBlock);

}  // namespace

Discriminator make_discriminator(const DiscriminatorConfig& config) {
  if (config.disc_type == "stylegan") return std::make_shared<StyleGanImpl>(config.image_size);
  require(config.disc_type == "patchgan", ErrorCode::kInvalidArgument, "disc_type '",
          config.disc_type, "' is unknown, expected patchgan or stylegan");
  require(config.disc_dim >= 1 && config.disc_num_layers >= 1, ErrorCode::kInvalidArgument,
          "patchgan: disc_dim ", config.disc_dim, " and disc_num_layers ", config.disc_num_layers,
          ", expected both at least 1");
  return std::make_shared<PatchGanImpl>(config.disc_dim, config.disc_num_layers);
}

PatchGanImpl::PatchGanImpl(int64_t dim, int64_t num_layers) {
  main_ = torch::nn::Sequential();
  main_->push_back(make_conv(3, dim, 4, 2, 1));
  main_->push_back(leaky_relu());
  int64_t channels = dim;
  for (int64_t layer = 1; layer <= num_layers; ++layer) {
    const int64_t out_channels =
        dim * std::min<int64_t>(int64_t{1} << std::min<int64_t>(layer, 3), 8);
    const int64_t stride = layer < num_layers ? 2 : 1;
    main_->push_back(make_conv(channels, out_channels, 4, stride, 1, /*use_bias=*/false));
    main_->push_back(nn::BatchNorm(out_channels));
    main_->push_back(leaky_relu());
    channels = out_channels;
  }
  main_->push_back(make_conv(channels, 1, 4, 1, 1));
  register_module("main", main_);

  const torch::NoGradGuard no_grad;
  for (const auto& child : main_->children()) {
    if (auto* conv = child->as<nn::Conv2d>()) conv->weight.normal_(0.0, 0.02);
    if (auto* norm = child->as<nn::BatchNorm>()) norm->weight.normal_(1.0, 0.02);
  }
}

torch::Tensor PatchGanImpl::forward(const torch::Tensor& image_B3HW) {
  return main_->forward(image_B3HW).to(torch::kFloat32);
}

void PatchGanImpl::set_ranks(nn::BatchRanks* ranks) {
  for (const auto& child : main_->children()) {
    if (auto* norm = child->as<nn::BatchNorm>()) norm->set_ranks(ranks);
  }
}

StyleGanImpl::StyleGanImpl(int64_t image_size) : image_size_(image_size) {
  require(image_size >= 8 && image_size <= 1024 && std::has_single_bit<uint64_t>(image_size),
          ErrorCode::kInvalidArgument, "stylegan discriminator: image size ", image_size,
          ", expected a power of two from 8 to 1024");
  blocks_ = torch::nn::Sequential(make_conv(3, stylegan_width(image_size), 3, 1, 1), leaky_relu());
  for (int64_t resolution = image_size; resolution > 4; resolution /= 2) {
    blocks_->push_back(StyleGanBlock(stylegan_width(resolution), stylegan_width(resolution / 2)));
  }
  register_module("blocks", blocks_);
  const int64_t width = stylegan_width(4);
  final_conv_ = register_module(
      "final_conv", torch::nn::Sequential(make_conv(width, width, 3, 1, 1), leaky_relu()));
  final_linear_ = register_module(
      "final_linear", torch::nn::Sequential(torch::nn::Linear(width * 16, width), leaky_relu(),
                                            torch::nn::Linear(width, 1)));
}

torch::Tensor StyleGanImpl::forward(const torch::Tensor& image_B3HW) {
  require(image_B3HW.size(2) == image_size_ && image_B3HW.size(3) == image_size_,
          ErrorCode::kInvalidArgument, "stylegan discriminator: image of ", image_B3HW.size(2),
          " x ", image_B3HW.size(3), ", made for ", image_size_, " x ", image_size_);
  torch::Tensor h_BCHW = image_B3HW;
  for (torch::nn::AnyModule& stage : *blocks_) {
    const auto forward = [&stage](const std::vector<at::Tensor>& inputs) {
      return stage.forward(inputs[0]);
    };
    const auto module = stage.ptr();
    h_BCHW = module->as<StyleGanBlock>() == nullptr ? forward({h_BCHW})
                                                    : run_block(*module, {h_BCHW}, forward);
  }
  const torch::Tensor h_BC44 = final_conv_->forward(h_BCHW);
  return final_linear_->forward(h_BC44.to(torch::kFloat32).flatten(1));  // (C, H, W) order
}

std::vector<std::shared_ptr<torch::nn::Module>> StyleGanImpl::blocks() const {
  std::vector<std::shared_ptr<torch::nn::Module>> blocks;
  for (const auto& child : blocks_->children()) {
    if (child->as<StyleGanBlock>() != nullptr) blocks.push_back(child);
  }
  return blocks;
}

}  // namespace vgen::tokenizer
