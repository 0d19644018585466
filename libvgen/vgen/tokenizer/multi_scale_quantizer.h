#pragma once
// VAR's residual quantizer (arXiv:2404.02905, algorithms 1 and 2; quant.py: VectorQuantizer2): one
// codebook describes a latent by maps of codes that grow from scale to scale.
//
// B batch, Z latent channels, h = w = the last p, K scales, p the side of a scale, V codes,
// L = sum of p^2 tokens, the scales one after the other, each in raster order.
// f is the latent, fhat what the scales so far make of it: fhat += phi(upsample(code)), with phi(x)
// = (1 - r) x + r conv3x3(x), r = |quant_resi|. The next scale describes what is left, averaged
// over areas. The last scale is neither averaged nor upsampled. All is computed in float32.

#include <torch/torch.h>

#include <cstdint>
#include <map>
#include <vector>

#include "vgen/nn/batch_ranks.h"
#include "vgen/nn/conv2d.h"

namespace vgen::tokenizer {

struct MultiScaleQuantizerConfig {
  int64_t codebook_size = 4096;
  int64_t z_channels = 32;
  std::vector<int64_t> patch_nums = {1, 2, 3, 4, 5, 6, 8, 10, 13, 16};
  double commit_loss_beta = 0.25;
  double quant_resi = 0.5;       ///< share of the convolution in phi; 0 = phi is the identity
  int64_t share_quant_resi = 4;  ///< number of phi that the scales share; 0 = one for each scale
};

/// Tokens of a latent: the sum of p^2.
int64_t num_tokens(const std::vector<int64_t>& patch_nums);

/// Throws Error(kInvalidArgument) unless there is a scale and their sides grow from at least 1.
/// `name` is the schedule's in the message.
void validate_patch_nums(const std::vector<int64_t>& patch_nums, const char* name);

/// Which of `num_phi` phi each of `num_scales` scales uses: the one whose tick in [0, 1] is nearest
/// to k / (num_scales - 1).
/// quirk: at 10 scales two of them lie exactly between two ticks of four, and the rounding of the
/// official code's double arithmetic decides: the tables of 10 and 14 scales are constants here.
std::vector<int64_t> phi_of_scales(int64_t num_scales, int64_t num_phi);

/// phi of one or several scales. Parameters `weight` (Z, Z, 3, 3) and `bias` (Z).
class PhiImpl : public nn::Conv2dImpl {
 public:
  PhiImpl(int64_t channels, double ratio);
  /// x_BZhw: float32. Same shape and dtype; differentiable.
  torch::Tensor forward(const torch::Tensor& x_BZhw);

 private:
  double ratio_;
};
TORCH_MODULE(Phi);

/// Parameters `embedding.weight` (V, Z) and those of phi: `quant_resi.qresi_ls.I` where scales
/// share several, `quant_resi.qresi` where they share one, `quant_resi.I` where each has its own.
/// Buffer `ema_vocab_hit_SV` (K, V) float32: averages of the number of times that a training batch
/// uses a code at a scale. Everything but a training forward may be called from several threads.
class MultiScaleQuantizerImpl : public torch::nn::Module {
 public:
  /// Codes uniform in +-1 / V, phi as a convolution. Throws Error(kInvalidArgument).
  explicit MultiScaleQuantizerImpl(const MultiScaleQuantizerConfig& config);

  struct Output {
    torch::Tensor quant_BZhw;  ///< float32, fhat; straight-through: its gradient passes to f
    torch::Tensor index_BL;    ///< int64
    /// Scalar, only in training: mean over the scales of
    /// commit_loss_beta * mse(sg fhat_k, f) + mse(fhat_k, sg f).
    torch::Tensor loss;
    // Without graph, float32; in training of the batch of all ranks.
    torch::Tensor hits_KV;  ///< how often the batch uses a code
    torch::Tensor error_K;  ///< mse(fhat_k, f) after each scale
    torch::Tensor power;    ///< scalar: the mean of f^2, all there is to tell
  };
  /// f_BZhw: floating, any dtype, h = w = the last patch number: Error(kInvalidArgument).
  /// Training also updates ema_vocab_hit_SV.
  Output forward(const torch::Tensor& f_BZhw) { return forward_until(f_BZhw, {}); }
  /// last_scale_B: int64 on the device of f; where image b's sum ends, K - 1 = the full sum. The
  /// scales behind add nothing to it and count no hits. Undefined = full sums.
  Output forward_until(const torch::Tensor& f_BZhw, const torch::Tensor& last_scale_B);

  /// The codes alone, int64 (B, L). No gradient.
  torch::Tensor encode(const torch::Tensor& f_BZhw);
  /// With another schedule that ends at h: (B, num_tokens(patch_nums)). Its own number of scales
  /// chooses the phi.
  torch::Tensor encode(const torch::Tensor& f_BZhw, const std::vector<int64_t>& patch_nums);

  /// fhat after the last scale, float32 (B, Z, h, w). index_BL: any integer dtype. No gradient.
  /// Throws Error(kInvalidArgument) for another number of codes and codes outside of [0, V).
  torch::Tensor latent(const torch::Tensor& index_BL);
  /// The same after every scale: K tensors.
  std::vector<torch::Tensor> latents(const torch::Tensor& index_BL);

  /// What a transformer sees of given codes: next_input() of scales 1 to K - 1, one after the
  /// other, float32 (B, L - p_0^2, Z). No gradient. Throws Error(kInvalidArgument) for another
  /// number of codes; whether codes are in [0, V) is not looked at, the device is not waited for.
  torch::Tensor teacher_input(const torch::Tensor& index_BL);

  /// Adds scale `scale` to fhat_BZhw (float32) in place. h_BZpp: its codes' vectors, floating. No
  /// gradient.
  void add_scale(int64_t scale, const torch::Tensor& h_BZpp, torch::Tensor& fhat_BZhw);
  /// fhat averaged to the p x p cells of `next_scale`, float32 (B, p^2, Z), raster order. No
  /// gradient.
  torch::Tensor next_input(int64_t next_scale, const torch::Tensor& fhat_BZhw);

  /// The vectors of the codes: index of any shape, int64, gives (..., Z). Differentiable.
  torch::Tensor lookup(const torch::Tensor& index) const;

  /// One step of the sum, (B, Z, side, side): phi(upsample(h)), the phi that `scale` of the own
  /// schedule uses. h_BZpp: float32, p its own side. Differentiable.
  torch::Tensor contribution(int64_t scale, const torch::Tensor& h_BZpp);
  /// x_BZhw averaged over areas to rows (B p^2, Z), b outermost, raster order. x itself at p = h.
  static torch::Tensor area_rows(const torch::Tensor& x_BZhw, int64_t p);

  /// Scales that the averages of ema_vocab_hit_SV have taken in. quirk: the official code counts
  /// once per scale, not per step, and keeps 0.9 of the old average up to 100, 0.99 then; only the
  /// very first scale starts with a copy. The count is in no checkpoint: whoever resumes sets it.
  int64_t hits_recorded() const { return hits_recorded_; }
  void set_hits_recorded(int64_t count) { hits_recorded_ = count; }

  /// Who shares its batches in training: what is counted and measured is that of all ranks
  /// together, and each forward pass is collective. Borrows; null: this process has all.
  void set_ranks(nn::BatchRanks* ranks) { ranks_ = ranks; }

  const torch::Tensor& codebook_VZ() const { return embedding_->weight; }
  const torch::Tensor& ema_vocab_hit_KV() const { return ema_vocab_hit_KV_; }
  const std::vector<int64_t>& patch_nums() const { return config_.patch_nums; }
  const MultiScaleQuantizerConfig& config() const { return config_; }

 private:
  void register_phi();
  int64_t num_phi() const;
  torch::Tensor apply_phi(int64_t phi, const torch::Tensor& h_BZpp, int64_t side);
  /// Bicubic. On CUDA by two matrix products: LibTorch's kernel there has a thread for each pixel,
  /// which goes through all images and channels.
  torch::Tensor enlarged(const torch::Tensor& h_BZpp, int64_t side);
  torch::Tensor vectors(const torch::Tensor& index_N, int64_t batch, int64_t p) const;
  void check_latent(const torch::Tensor& f_BZhw, int64_t side) const;
  void check_count(const torch::Tensor& index_BL) const;
  void add_other_ranks(Output& output) const;
  void record_hits(const torch::Tensor& hits_KV);

  MultiScaleQuantizerConfig config_;
  nn::BatchRanks* ranks_ = nullptr;
  int64_t hits_recorded_ = 0;
  torch::nn::Embedding embedding_{nullptr};
  std::vector<Phi> phi_;                        ///< empty when quant_resi is 0
  std::vector<int64_t> phi_of_scale_;           ///< of the own schedule
  std::map<int64_t, torch::Tensor> enlarging_;  ///< by p: float64 (side, p), on CUDA
  torch::Tensor ema_vocab_hit_KV_;
};
TORCH_MODULE(MultiScaleQuantizer);

}  // namespace vgen::tokenizer
