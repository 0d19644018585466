#include "vgen/infer/multi_scale_tokenizer.h"

#include "vgen/core/error.h"
#include "vgen/infer/fingerprint.h"

namespace vgen::infer {

MultiScaleTokenizer::MultiScaleTokenizer(tokenizer::MultiScaleVqvae model, c10::Device device)
    : model_(std::move(model)), device_(device) {}

at::Tensor MultiScaleTokenizer::encode(const at::Tensor& image_B3HW) const {
  const torch::NoGradGuard no_grad;
  return model_.ptr()->encode(image_B3HW.to(device_));
}

at::Tensor MultiScaleTokenizer::decode(const at::Tensor& code, int64_t height,
                                       int64_t width) const {
  const torch::NoGradGuard no_grad;
  const int64_t length = code_shape(height, width)[0];
  require(code.dim() >= 1 && code.size(0) > 0 && code.numel() == code.size(0) * length,
          ErrorCode::kInvalidArgument, "tokenizer: codes ", format_shape(code.sizes().vec()),
          ", expected (B, ", length, ")");
  return model_.ptr()->decode_code(code.to(device_).reshape({code.size(0), length}));
}

std::vector<at::Tensor> MultiScaleTokenizer::decode_scales(const at::Tensor& code_BL) const {
  const torch::NoGradGuard no_grad;
  return model_.ptr()->decode_scales(code_BL.to(device_));
}

at::Tensor MultiScaleTokenizer::decode_latent(const at::Tensor& latent_BZhh) const {
  const torch::NoGradGuard no_grad;
  return model_.ptr()->decode(latent_BZhh);
}

std::vector<int64_t> MultiScaleTokenizer::code_shape(int64_t height, int64_t width) const {
  require(height == image_size() && width == image_size(), ErrorCode::kInvalidArgument,
          "tokenizer: image of ", height, " x ", width, ", but its scales are made for ",
          image_size(), " x ", image_size());
  return {tokenizer::num_tokens(patch_nums())};
}

std::vector<int64_t> MultiScaleTokenizer::patch_nums() const { return model_->config().patch_nums; }

std::string MultiScaleTokenizer::fingerprint() const {
  std::string traits = str_cat("quant_resi=", model_->config().quant_resi, "\npatch_nums=");
  for (const int64_t p : patch_nums()) traits += str_cat(p, ",");
  return infer::fingerprint(kind(), traits, checkpoint::named_parameters(*model_));
}

std::string MultiScaleTokenizer::config_yaml() const { return dump_config(model_->config()); }

}  // namespace vgen::infer
