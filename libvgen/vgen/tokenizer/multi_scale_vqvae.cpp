#include "vgen/tokenizer/multi_scale_vqvae.h"

#include "vgen/core/error.h"
#include "vgen/core/strings.h"
#include "vgen/tokenizer/run_coder.h"

namespace vgen::tokenizer {
namespace {

CoderConfig coder_config(const MultiScaleVqvaeConfig& config, int64_t more_res_blocks) {
  return {.ch = config.ch,
          .ch_mult = config.ch_mult,
          .num_res_blocks = config.num_res_blocks + more_res_blocks,
          .z_channels = config.z_channels,
          .dropout_p = config.dropout_p,
          .layout = Layout::kVar};
}

nn::Conv2dOptions latent_conv(const MultiScaleVqvaeConfig& config) {
  return {.in_channels = config.z_channels,
          .out_channels = config.z_channels,
          .kernel_size = config.quant_conv_kernel,
          .padding = config.quant_conv_kernel / 2};
}

}  // namespace

void validate(const MultiScaleVqvaeConfig& config) {
  const auto levels = config.ch_mult.size();
  require(levels >= 1 && levels <= 8, ErrorCode::kInvalidArgument, "model.ch_mult has ", levels,
          " levels, expected 1 to 8");
  require(config.ch % 32 == 0, ErrorCode::kInvalidArgument, "model.ch is ", config.ch,
          ", expected a multiple of 32, the number of normalisation groups");
  require(config.quant_conv_kernel % 2 == 1, ErrorCode::kInvalidArgument,
          "model.quant_conv_kernel is ", config.quant_conv_kernel, ", expected an odd number");
  validate_patch_nums(config.patch_nums, "model.patch_nums");
}

MultiScaleVqvaeImpl::MultiScaleVqvaeImpl(const MultiScaleVqvaeConfig& config) : config_(config) {
  validate(config);
  encoder = register_module("encoder", Encoder(coder_config(config, 0)));
  decoder = register_module("decoder", Decoder(coder_config(config, 1)));
  quantize = register_module("quantize", MultiScaleQuantizer(MultiScaleQuantizerConfig{
                                             .codebook_size = config.codebook_size,
                                             .z_channels = config.z_channels,
                                             .patch_nums = config.patch_nums,
                                             .commit_loss_beta = config.commit_loss_beta,
                                             .quant_resi = config.quant_resi,
                                             .share_quant_resi = config.share_quant_resi}));
  quant_conv_ = register_module("quant_conv", nn::Conv2d(latent_conv(config)));
  post_quant_conv_ = register_module("post_quant_conv", nn::Conv2d(latent_conv(config)));
}

void MultiScaleVqvaeImpl::set_compute_dtype(torch::ScalarType dtype) {
  require(dtype == torch::kFloat32 || dtype == torch::kBFloat16 || dtype == torch::kHalf,
          ErrorCode::kInvalidArgument, "tokenizer: cannot compute in ", torch::toString(dtype),
          ", expected Float, BFloat16 or Half");
  compute_dtype_ = dtype;
}

std::vector<std::shared_ptr<torch::nn::Module>> MultiScaleVqvaeImpl::blocks() const {
  auto blocks = encoder->blocks();
  for (auto& block : decoder->blocks()) blocks.push_back(std::move(block));
  return blocks;
}

torch::Tensor MultiScaleVqvaeImpl::encode_latent(const torch::Tensor& image_B3SS) {
  require(image_B3SS.dim() == 4 && image_B3SS.size(1) == 3 && image_B3SS.is_floating_point(),
          ErrorCode::kInvalidArgument, "tokenizer: expected floating images (B, 3, H, W), got ",
          torch::toString(image_B3SS.scalar_type()), " ", format_shape(image_B3SS.sizes().vec()));
  const int64_t height = image_B3SS.size(2), width = image_B3SS.size(3);
  const int64_t side = config_.image_size();
  require(height == side && width == side, ErrorCode::kInvalidArgument, "tokenizer: image of ",
          height, " x ", width, ", but the scales ", format_shape(config_.patch_nums),
          " with cells of ", config_.downsample(), " pixels make ", side, " x ", side,
          "; resize or crop it");
  return run_coder(image_B3SS, compute_dtype_,
                   [&](const torch::Tensor& part) { return quant_conv_(encoder(part)); });
}

torch::Tensor MultiScaleVqvaeImpl::encode(const torch::Tensor& image_B3SS) {
  const torch::NoGradGuard no_grad;
  return quantize->encode(encode_latent(image_B3SS));
}

torch::Tensor MultiScaleVqvaeImpl::encode(const torch::Tensor& image_B3SS,
                                          const std::vector<int64_t>& patch_nums) {
  const torch::NoGradGuard no_grad;
  return quantize->encode(encode_latent(image_B3SS), patch_nums);
}

torch::Tensor MultiScaleVqvaeImpl::decode_unclamped(const torch::Tensor& fhat_BZhh) {
  const int64_t side = config_.patch_nums.back();
  require(fhat_BZhh.dim() == 4 && fhat_BZhh.size(1) == config_.z_channels &&
              fhat_BZhh.size(2) == side && fhat_BZhh.size(3) == side,
          ErrorCode::kInvalidArgument, "tokenizer: expected latents (B, ", config_.z_channels, ", ",
          side, ", ", side, "), got ", format_shape(fhat_BZhh.sizes().vec()));
  return run_coder(fhat_BZhh, compute_dtype_,
                   [&](const torch::Tensor& part) { return decoder(post_quant_conv_(part)); });
}

torch::Tensor MultiScaleVqvaeImpl::decode(const torch::Tensor& fhat_BZhh) {
  return decode_unclamped(fhat_BZhh).clamp(-1, 1);
}

torch::Tensor MultiScaleVqvaeImpl::decode_code(const torch::Tensor& index_BL) {
  return decode(quantize->latent(index_BL));
}

std::vector<torch::Tensor> MultiScaleVqvaeImpl::decode_scales(const torch::Tensor& index_BL) {
  std::vector<torch::Tensor> images;
  for (const torch::Tensor& fhat_BZhh : quantize->latents(index_BL)) {
    images.push_back(decode(fhat_BZhh));
  }
  return images;
}

MultiScaleVqvaeImpl::Output MultiScaleVqvaeImpl::forward_until(const torch::Tensor& image_B3SS,
                                                               const torch::Tensor& last_scale_B) {
  Output output;
  output.quantized = quantize->forward_until(encode_latent(image_B3SS), last_scale_B);
  output.image_B3SS = decode_unclamped(output.quantized.quant_BZhw);
  return output;
}

}  // namespace vgen::tokenizer
