#pragma once
// The discriminators of LlamaGen's VQGAN training. B batch, H height, W width. Parameter names are
// the official ones, as in the "discriminator" entry of its checkpoints.

#include <torch/torch.h>

#include <memory>
#include <string>
#include <vector>

#include "vgen/nn/batch_ranks.h"
#include "vgen/nn/conv2d.h"

namespace vgen::tokenizer {

struct DiscriminatorConfig {
  std::string disc_type = "patchgan";  ///< or "stylegan"
  int64_t disc_dim = 64;               ///< patchgan: width of the first layer
  int64_t disc_num_layers = 3;         ///< patchgan: layers of stride 2
  int64_t image_size = 256;            ///< stylegan: side of the images, a power of two, 8 to 1024
};

/// Tells real images from reconstructions. Computes in the dtype of its input.
class DiscriminatorImpl : public torch::nn::Module {
 public:
  /// image_B3HW: in [-1, 1]. Returns logits, float32: high means real.
  virtual torch::Tensor forward(const torch::Tensor& image_B3HW) = 0;
  /// Who shares its batches in training. Borrows; null: this process has all.
  virtual void set_ranks(nn::BatchRanks* /*ranks*/) {}
  /// What runs through run_block().
  virtual std::vector<std::shared_ptr<torch::nn::Module>> blocks() const { return {}; }
};
using Discriminator = std::shared_ptr<DiscriminatorImpl>;

/// Throws Error(kInvalidArgument) for values out of range.
Discriminator make_discriminator(const DiscriminatorConfig& config);

/// PatchGAN (arXiv:1611.07004): 4x4 convolutions, batch norm, leaky ReLU; one logit per patch,
/// (B, 1, 30, 30) of 256 x 256 images. Statistics of the batch norm are those of all ranks (the
/// official code: of each of its own). No blocks: who computes a batch norm again counts it twice.
class PatchGanImpl : public DiscriminatorImpl {
 public:
  PatchGanImpl(int64_t dim, int64_t num_layers);
  torch::Tensor forward(const torch::Tensor& image_B3HW) override;
  void set_ranks(nn::BatchRanks* ranks) override;

 private:
  torch::nn::Sequential main_{nullptr};
};

/// The discriminator of StyleGAN2 (arXiv:1912.04958) without equalised learning rate and without
/// minibatch statistics. Returns (B, 1). Its blocks: one for each resolution.
class StyleGanImpl : public DiscriminatorImpl {
 public:
  explicit StyleGanImpl(int64_t image_size);
  /// Throws Error(kInvalidArgument) unless the images have the side given to the constructor.
  torch::Tensor forward(const torch::Tensor& image_B3HW) override;
  std::vector<std::shared_ptr<torch::nn::Module>> blocks() const override;

 private:
  int64_t image_size_;
  torch::nn::Sequential blocks_{nullptr}, final_linear_{nullptr};
  torch::nn::Sequential final_conv_{nullptr};
};

}  // namespace vgen::tokenizer
