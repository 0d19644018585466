#include "vgen/tokenizer/lpips.h"

#include <array>

#include "vgen/core/error.h"
#include "vgen/core/strings.h"

namespace vgen::tokenizer {
namespace {

/// Index in torchvision's `features` of each convolution, and the tap that it belongs to.
struct VggConv {
  int index;
  int slice;
};
constexpr std::array<VggConv, 13> kVggConvs = {{{0, 0},
                                                {2, 0},
                                                {5, 1},
                                                {7, 1},
                                                {10, 2},
                                                {12, 2},
                                                {14, 2},
                                                {17, 3},
                                                {19, 3},
                                                {21, 3},
                                                {24, 4},
                                                {26, 4},
                                                {28, 4}}};
constexpr int kNumTaps = 5;

const torch::Tensor& find_weight(const NamedWeights& weights, const std::string& name,
                                 const std::string& what) {
  const auto found = weights.find(name);
  require(found != weights.end(), ErrorCode::kInvalidArgument, "LPIPS: ", what, " have no tensor '",
          name, "'; ", lpips_weights_help());
  return found->second;
}

void require_shape(const std::string& name, const torch::Tensor& tensor,
                   const std::vector<int64_t>& expected) {
  require(tensor.sizes().vec() == expected, ErrorCode::kInvalidArgument, "LPIPS: ", name, " is ",
          format_shape(tensor.sizes().vec()), ", expected ", format_shape(expected), "; ",
          lpips_weights_help());
}

torch::Tensor unit_channels(const torch::Tensor& f_BCHW) {
  const torch::Tensor f = f_BCHW.to(torch::kFloat32);
  return f / (f.square().sum(1, /*keepdim=*/true).sqrt() + 1e-10);
}

}  // namespace

std::string lpips_weights_help() {
  return "LPIPS needs torchvision's VGG16 (vgg16-397923af.pth from "
         "https://download.pytorch.org/models) and the linear layers of LPIPS 0.1 (vgg.pth from "
         "https://github.com/richzhang/PerceptualSimilarity, lpips/weights/v0.1); without them set "
         "the perceptual weight to 0";
}

LpipsImpl::LpipsImpl(const NamedWeights& vgg, const NamedWeights& lin) {
  shift_ = register_buffer("shift", torch::tensor({-.030f, -.088f, -.188f}).view({1, 3, 1, 1}));
  scale_ = register_buffer("scale", torch::tensor({.458f, .448f, .450f}).view({1, 3, 1, 1}));
  int64_t channels = 3;
  std::array<int64_t, kNumTaps> widths{};
  const torch::NoGradGuard no_grad;
  for (const VggConv& spec : kVggConvs) {
    const std::string name = str_cat("features.", spec.index);
    const torch::Tensor& weight = find_weight(vgg, name + ".weight", "the VGG16 weights");
    const torch::Tensor& bias = find_weight(vgg, name + ".bias", "the VGG16 weights");
    require(weight.dim() == 4 && weight.size(0) > 0, ErrorCode::kInvalidArgument, "LPIPS: ", name,
            ".weight is ", format_shape(weight.sizes().vec()), ", expected four dimensions; ",
            lpips_weights_help());
    const int64_t out_channels = weight.size(0);
    require_shape(name + ".weight", weight, {out_channels, channels, 3, 3});
    require_shape(name + ".bias", bias, {out_channels});
    nn::Conv2d conv(nn::conv3x3(channels, out_channels));
    conv->weight.copy_(weight);
    conv->bias.copy_(bias);
    convs_.push_back(register_module(str_cat("conv", spec.index), conv));
    widths[spec.slice] = channels = out_channels;
  }
  for (int k = 0; k < kNumTaps; ++k) {
    const std::string name = str_cat("lin", k, ".model.1.weight");
    const torch::Tensor& weight = find_weight(lin, name, "the linear layers");
    require_shape(name, weight, {1, widths[k], 1, 1});
    lin_1C11_.push_back(register_buffer(str_cat("lin", k), weight.to(torch::kFloat32).clone()));
  }
  for (torch::Tensor& parameter : parameters()) parameter.set_requires_grad(false);
}

std::vector<torch::Tensor> LpipsImpl::features(const torch::Tensor& image_B3HW) {
  torch::Tensor h_BCHW = ((image_B3HW.to(torch::kFloat32) - shift_) / scale_)
                             .to(image_B3HW.scalar_type())
                             .contiguous(torch::MemoryFormat::ChannelsLast);
  std::vector<torch::Tensor> taps;
  for (size_t i = 0; i < convs_.size(); ++i) {
    if (i > 0 && kVggConvs[i].slice != kVggConvs[i - 1].slice) {
      taps.push_back(h_BCHW);
      h_BCHW = at::max_pool2d(h_BCHW, 2);
    }
    h_BCHW = convs_[i](h_BCHW).relu_();
  }
  taps.push_back(h_BCHW);
  return taps;
}

torch::Tensor LpipsImpl::forward(const torch::Tensor& image_B3HW, const torch::Tensor& other_B3HW) {
  require(image_B3HW.sizes() == other_B3HW.sizes(), ErrorCode::kInvalidArgument,
          "LPIPS: images of ", format_shape(image_B3HW.sizes().vec()), " and ",
          format_shape(other_B3HW.sizes().vec()), ", expected equal shapes");
  require(image_B3HW.dim() == 4 && image_B3HW.size(2) >= 16 && image_B3HW.size(3) >= 16,
          ErrorCode::kInvalidArgument, "LPIPS: images of ", format_shape(image_B3HW.sizes().vec()),
          ", expected (B, 3, H, W) with sides of at least 16");
  const std::vector<torch::Tensor> taps = features(image_B3HW), others = features(other_B3HW);
  torch::Tensor total;
  for (int k = 0; k < kNumTaps; ++k) {
    torch::Tensor difference_BCHW = (unit_channels(taps[k]) - unit_channels(others[k])).square();
    if (use_dropout) difference_BCHW = torch::dropout(difference_BCHW, 0.5, is_training());
    const torch::Tensor distance =
        (difference_BCHW * lin_1C11_[k]).sum(1, /*keepdim=*/true).mean({2, 3}, /*keepdim=*/true);
    total = total.defined() ? total + distance : distance;
  }
  return total;
}

}  // namespace vgen::tokenizer
