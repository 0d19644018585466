#include "vgen/tokenizer/vqgan.h"

#include "vgen/core/error.h"
#include "vgen/core/strings.h"
#include "vgen/tokenizer/run_coder.h"

namespace vgen::tokenizer {
namespace {

CoderConfig coder_config(const VqganConfig& config, const std::vector<int64_t>& ch_mult,
                         int64_t more_res_blocks) {
  return {.ch = config.ch,
          .ch_mult = ch_mult,
          .num_res_blocks = config.num_res_blocks + more_res_blocks,
          .z_channels = config.z_channels,
          .dropout_p = config.dropout_p,
          .layout = Layout::kLlamaGen};
}

}  // namespace

VqganConfig vqgan_preset(const std::string& name) {
  VqganConfig config;
  if (name == "VQ-16") return config;
  require(name == "VQ-8", ErrorCode::kInvalidArgument, "tokenizer '", name,
          "' is unknown, expected VQ-16 or VQ-8");
  config.encoder_ch_mult = config.decoder_ch_mult = {1, 2, 2, 4};
  return config;
}

void validate(const VqganConfig& config) {
  const auto levels = config.encoder_ch_mult.size();
  require(levels >= 1 && levels <= 8, ErrorCode::kInvalidArgument, "model.encoder_ch_mult has ",
          levels, " levels, expected 1 to 8");
  require(levels == config.decoder_ch_mult.size(), ErrorCode::kInvalidArgument,
          "model.decoder_ch_mult has ", config.decoder_ch_mult.size(),
          " levels, expected as many as model.encoder_ch_mult, ", levels);
  require(config.ch % 32 == 0, ErrorCode::kInvalidArgument, "model.ch is ", config.ch,
          ", expected a multiple of 32, the number of normalisation groups");
}

VqganImpl::VqganImpl(const VqganConfig& config) : config_(config) {
  validate(config);
  encoder = register_module("encoder", Encoder(coder_config(config, config.encoder_ch_mult, 0)));
  decoder = register_module("decoder", Decoder(coder_config(config, config.decoder_ch_mult, 1)));
  quantize = register_module("quantize", VectorQuantizer(QuantizerConfig{
                                             .codebook_size = config.codebook_size,
                                             .codebook_embed_dim = config.codebook_embed_dim,
                                             .commit_loss_beta = config.commit_loss_beta,
                                             .entropy_loss_ratio = config.entropy_loss_ratio,
                                             .codebook_l2_norm = config.codebook_l2_norm,
                                             .codebook_show_usage = config.codebook_show_usage}));
  quant_conv_ = register_module(
      "quant_conv", nn::Conv2d(nn::conv1x1(config.z_channels, config.codebook_embed_dim)));
  post_quant_conv_ = register_module(
      "post_quant_conv", nn::Conv2d(nn::conv1x1(config.codebook_embed_dim, config.z_channels)));
}

void VqganImpl::set_compute_dtype(torch::ScalarType dtype) {
  require(dtype == torch::kFloat32 || dtype == torch::kBFloat16 || dtype == torch::kHalf,
          ErrorCode::kInvalidArgument, "tokenizer: cannot compute in ", torch::toString(dtype),
          ", expected Float, BFloat16 or Half");
  compute_dtype_ = dtype;
}

std::vector<std::shared_ptr<torch::nn::Module>> VqganImpl::blocks() const {
  auto blocks = encoder->blocks();
  for (auto& block : decoder->blocks()) blocks.push_back(std::move(block));
  return blocks;
}

torch::Tensor VqganImpl::encode_latent(const torch::Tensor& image_B3HW) {
  require(image_B3HW.dim() == 4 && image_B3HW.size(1) == 3 && image_B3HW.is_floating_point(),
          ErrorCode::kInvalidArgument, "tokenizer: expected floating images (B, 3, H, W), got ",
          torch::toString(image_B3HW.scalar_type()), " ", format_shape(image_B3HW.sizes().vec()));
  const int64_t height = image_B3HW.size(2), width = image_B3HW.size(3);
  const int64_t factor = config_.downsample();
  require(height > 0 && width > 0 && height % factor == 0 && width % factor == 0,
          ErrorCode::kInvalidArgument, "tokenizer: image of ", height, " x ", width,
          ", but both sides must be multiples of ", factor, "; resize or crop it");
  return run_coder(image_B3HW, compute_dtype_,
                   [&](const torch::Tensor& part) { return quant_conv_(encoder(part)); });
}

Quantized VqganImpl::encode(const torch::Tensor& image_B3HW) {
  return quantize(encode_latent(image_B3HW));
}

torch::Tensor VqganImpl::decode(const torch::Tensor& quant_BDhw) {
  require(quant_BDhw.dim() == 4 && quant_BDhw.size(1) == config_.codebook_embed_dim,
          ErrorCode::kInvalidArgument, "tokenizer: expected latents (B, ",
          config_.codebook_embed_dim, ", h, w), got ", format_shape(quant_BDhw.sizes().vec()));
  return run_coder(quant_BDhw, compute_dtype_,
                   [&](const torch::Tensor& part) { return decoder(post_quant_conv_(part)); });
}

torch::Tensor VqganImpl::decode_code(const torch::Tensor& index, int64_t batch, int64_t height,
                                     int64_t width) {
  return decode(quantize->get_codebook_entry(index, batch, height, width));
}

VqganImpl::Output VqganImpl::forward(const torch::Tensor& image_B3HW) {
  Output output;
  output.quantized = encode(image_B3HW);
  output.image_B3HW = decode(output.quantized.quant_BDhw);
  return output;
}

}  // namespace vgen::tokenizer
