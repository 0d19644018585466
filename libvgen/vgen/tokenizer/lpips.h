#pragma once
// Learned perceptual distance on VGG16 (arXiv:1801.03924), as LlamaGen's lpips.py has it.
// B batch, H height, W width.

#include <torch/torch.h>

#include <map>
#include <string>
#include <vector>

#include "vgen/nn/conv2d.h"

namespace vgen::tokenizer {

/// Tensors by name, as read from a file by the caller: this room opens no files.
using NamedWeights = std::map<std::string, torch::Tensor>;

/// What to tell a user who has no weights: where both files come from.
std::string lpips_weights_help();

/// Frozen: no parameter asks for a gradient, train() changes only the dropout below.
class LpipsImpl : public torch::nn::Module {
 public:
  /// vgg: torchvision's VGG16, `features.{n}.weight` and `.bias` (a classifier is passed over).
  /// lin: `lin{k}.model.1.weight` (1, C, 1, 1), k = 0..4; C must be the width of the VGG's k-th
  /// tap. Channel widths are read off the tensors. Throws Error(kInvalidArgument): which tensor is
  /// missing or misshaped, and where the files come from.
  LpipsImpl(const NamedWeights& vgg, const NamedWeights& lin);

  /// quirk: LlamaGen's training loop switches on the dropout (p = 0.5) in front of the five linear
  /// layers. Off by default; only acts in train mode.
  bool use_dropout = false;

  /// image_B3HW, other_B3HW: in [-1, 1], the same shape, sides at least 16. The VGG computes in
  /// the dtype of the images, the distances in float32. Returns (B, 1, 1, 1).
  torch::Tensor forward(const torch::Tensor& image_B3HW, const torch::Tensor& other_B3HW);

  /// The five taps relu1_2, relu2_2, relu3_3, relu4_3, relu5_3 of an image.
  std::vector<torch::Tensor> features(const torch::Tensor& image_B3HW);

 private:
  std::vector<nn::Conv2d> convs_;  ///< the 13 convolutions in order
  std::vector<torch::Tensor> lin_1C11_;
  torch::Tensor shift_, scale_;
};
TORCH_MODULE(Lpips);

}  // namespace vgen::tokenizer
