#pragma once
// The vector quantizer of LlamaGen's tokenizer (vq_model.py: VectorQuantizer).
// B batch, D code channels, h height, w width, N = B h w rows in (b, y, x) order, V codes.

#include <torch/torch.h>

#include "vgen/nn/batch_ranks.h"

namespace vgen::tokenizer {

struct QuantizerConfig {
  int64_t codebook_size = 16384;
  int64_t codebook_embed_dim = 8;
  double commit_loss_beta = 0.25;
  double entropy_loss_ratio = 0.0;
  bool codebook_l2_norm = true;
  bool codebook_show_usage = true;
};

/// Scalars, float32, on the device of the latent. Undefined tensors when not training.
struct QuantizerLosses {
  torch::Tensor vq_loss;      ///< mean (z_q - sg z)^2: moves the codebook
  torch::Tensor commit_loss;  ///< commit_loss_beta * mean (sg z_q - z)^2: moves the encoder
  torch::Tensor entropy_loss;
  torch::Tensor codebook_usage;  ///< share of codes among the last 65536 indices, of all ranks
};

struct Quantized {
  torch::Tensor quant_BDhw;  ///< float32, straight-through: the gradient passes to the latent
  torch::Tensor index_N;     ///< int64
  QuantizerLosses losses;
};

/// Nearest-code quantizer. Parameter `embedding.weight` (V, D); buffer `codebook_used` (65536)
/// float32 with the latest indices, only with codebook_show_usage. With codebook_l2_norm latent and
/// code are normalised at every use, the stored codebook is not.
class VectorQuantizerImpl : public torch::nn::Module {
 public:
  explicit VectorQuantizerImpl(const QuantizerConfig& config);

  /// z_BDhw: any floating dtype; all is computed in float32. Ties go to the first code. While
  /// training at most 65536 rows when codebook_show_usage is on: Error(kInvalidArgument).
  Quantized forward(const torch::Tensor& z_BDhw);

  /// The codes themselves: index of any shape with B h w elements, any integer dtype, each in
  /// [0, V). Returns float32 (B, D, h, w). Throws Error(kInvalidArgument).
  torch::Tensor get_codebook_entry(const torch::Tensor& index, int64_t batch, int64_t height,
                                   int64_t width);

  /// (V, D) as used for comparison: normalised with codebook_l2_norm. Differentiable.
  torch::Tensor codebook_VD() const;

  /// Who shares its batches in training: the entropy loss and codebook_used are those of all ranks
  /// together, each forward pass is collective. Borrows; null: this process has all.
  void set_ranks(nn::BatchRanks* ranks) { ranks_ = ranks; }

 private:
  torch::Tensor update_usage(const torch::Tensor& index_N, int64_t batch);

  QuantizerConfig config_;
  nn::BatchRanks* ranks_ = nullptr;
  torch::nn::Embedding embedding_{nullptr};
  torch::Tensor codebook_used_;
};
TORCH_MODULE(VectorQuantizer);

/// Entropy loss of MaskGIT over distances d_NV: mean entropy of the rows' softmax(-d / 0.01), less
/// the entropy of their mean. quirk: 1e-5 is added inside both logarithms' arguments. The mean of
/// the rows is that of all ranks; the mean of the results over the ranks is the loss of all rows.
torch::Tensor entropy_loss(const torch::Tensor& distance_NV, nn::BatchRanks* ranks = nullptr);

}  // namespace vgen::tokenizer
