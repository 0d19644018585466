#pragma once
// VAR's tokenizer, ready for use: what every tokenizer does, and what the next-scale loop asks for.

#include <vector>

#include "vgen/infer/load_tokenizer.h"
#include "vgen/tokenizer/multi_scale_vqvae.h"

namespace vgen::infer {

/// Codes of an image are (B, L), the scales one after the other, each in raster order.
class MultiScaleTokenizer : public ImageTokenizer {
 public:
  /// `model`: loaded, in evaluation mode, on `device`.
  MultiScaleTokenizer(tokenizer::MultiScaleVqvae model, c10::Device device);

  at::Tensor encode(const at::Tensor& image_B3HW) const override;
  at::Tensor decode(const at::Tensor& code, int64_t height, int64_t width) const override;
  std::vector<at::Tensor> decode_scales(const at::Tensor& code_BL) const override;
  std::vector<int64_t> code_shape(int64_t height, int64_t width) const override;
  std::vector<int64_t> patch_nums() const override;
  int64_t codebook_size() const override { return model_->config().codebook_size; }
  int64_t downsample() const override { return model_->config().downsample(); }
  std::string fingerprint() const override;
  std::string kind() const override { return "msvqvae"; }
  std::string config_yaml() const override;

  /// The sum of the scales, f̂, float32 (B, Z, h, h), to images in [-1, 1], float32 (B, 3, S, S).
  at::Tensor decode_latent(const at::Tensor& latent_BZhh) const;
  /// The quantizer, for the loop over the scales.
  tokenizer::MultiScaleQuantizerImpl& quantizer() const { return *model_.ptr()->quantize; }
  c10::Device device() const { return device_; }
  int64_t image_size() const { return model_->config().image_size(); }

 private:
  tokenizer::MultiScaleVqvae model_;
  c10::Device device_;
};

}  // namespace vgen::infer
