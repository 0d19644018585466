#pragma once
// What training an image tokenizer costs, counted layer by layer from its shape: operations, for
// the share of a device that is in use and for plans; bytes of activations, for plans.

#include <cstdint>
#include <vector>

#include "vgen/tokenizer/encoder.h"
#include "vgen/tokenizer/multi_scale_vqvae.h"
#include "vgen/tokenizer/vq_loss.h"
#include "vgen/tokenizer/vqgan.h"
#include "vgen/train/plan_activations.h"

namespace vgen::train {

/// A tokenizer as far as its cost depends on it, whichever it is.
struct TokenizerShape {
  tokenizer::CoderConfig encoder, decoder;
  int64_t codebook_size = 0;
  int64_t code_channels = 0;
  int64_t latent_kernel = 1;             ///< of the convolutions on both sides of the quantizer
  bool has_entropy_loss = false;         ///< between all latents and all codes
  std::vector<int64_t> patch_nums = {};  ///< of a multi-scale one; empty: one map of codes
  bool has_phi = false;                  ///< a convolution behind each scale

  int64_t downsample() const { return int64_t{1} << (encoder.ch_mult.size() - 1); }
};
TokenizerShape shape_of(const tokenizer::VqganConfig& config);
TokenizerShape shape_of(const tokenizer::MultiScaleVqvaeConfig& config);

/// Operations of one image, two for a product and its sum: direct convolutions, attention, matrix
/// products and the comparison of latents with codes. Norms and all else that takes a few
/// operations for each value are not among them.
struct TokenizerFlops {
  double encode = 0;   ///< E: encoder, and what the quantizer convolves
  double search = 0;   ///< S: the nearest of all codes, for each latent vector
  double decode = 0;   ///< D: decoder
  double vgg = 0;      ///< V: LPIPS's VGG16, once; 0 without LPIPS
  double disc = 0;     ///< P: the discriminator, once; 0 without
  double entropy = 0;  ///< of the entropy loss, forward and backward; 0 without

  /// Forward and backward passes of a step. A backward pass takes a forward's worth for the
  /// gradient to the input and another for that to the weights:
  /// - 3 (E + D), and S, which has no backward pass; 3 S more with the entropy loss;
  /// - 3 V: forward on image and reconstruction, backward to the reconstruction alone;
  /// - 8 P: forward and backward to the reconstruction for the generator, two forwards and their
  ///   backward passes for itself.
  /// So it is in steps that use the discriminator; before `disc_start` the generator's pass through
  /// it is not differentiated. What the codebook's care costs now and then is left out.
  double train() const { return 3 * (encode + decode) + search + entropy + 3 * vgg + 8 * disc; }
};
/// `side` of an image in pixels, a multiple of shape.downsample().
TokenizerFlops tokenizer_flops(const TokenizerShape& shape, const tokenizer::VqLossConfig& loss,
                               int64_t side);

/// Of each phase: the generator, and the discriminator where there is one. Blocks are those of
/// TokenizerModel::blocks(). In steps that use the discriminator. Of StyleGAN's discriminator
/// nothing is counted.
std::vector<Activations> tokenizer_activations(const TokenizerShape& shape,
                                               const tokenizer::VqLossConfig& loss, int64_t side,
                                               const ActivationSetup& setup);

}  // namespace vgen::train
