#pragma once
// The training objective of LlamaGen's VQGAN (vq_loss.py). B batch, H height, W width.

#include <torch/torch.h>

#include <string>
#include <utility>
#include <vector>

#include "vgen/core/config.h"
#include "vgen/nn/batch_ranks.h"
#include "vgen/tokenizer/discriminator.h"
#include "vgen/tokenizer/lpips.h"
#include "vgen/tokenizer/quantizer.h"

namespace vgen::tokenizer {

struct VqLossConfig {                      // YAML section `loss:`
  std::string reconstruction_loss = "l2";  ///< mean square, or "l1" mean absolute
  double reconstruction_weight = 1.0;
  double perceptual_weight = 1.0;   ///< 0: LPIPS is not needed
  bool perceptual_dropout = false;  ///< quirk of the official loop, see lpips.h
  std::string disc_type = "patchgan";
  std::string disc_loss = "hinge";     ///< "vanilla", "non-saturating"
  std::string gen_adv_loss = "hinge";  ///< "non-saturating"
  double disc_weight = 0.5;            ///< 0: there is no discriminator
  int64_t disc_start = 20000;          ///< step, from 1, that first uses the discriminator
  int64_t disc_dim = 64;
  int64_t disc_num_layers = 3;
  bool disc_adaptive_weight = false;
};

template <class Visitor>
void visit_fields(Visitor& v, VqLossConfig& c) {
  v("reconstruction_loss", c.reconstruction_loss, one_of({"l1", "l2"}));
  v("reconstruction_weight", c.reconstruction_weight, at_least(0));
  v("perceptual_weight", c.perceptual_weight, at_least(0));
  v("perceptual_dropout", c.perceptual_dropout);
  v("disc_type", c.disc_type, one_of({"patchgan", "stylegan"}));
  v("disc_loss", c.disc_loss, one_of({"hinge", "vanilla", "non-saturating"}));
  v("gen_adv_loss", c.gen_adv_loss, one_of({"hinge", "non-saturating"}));
  v("disc_weight", c.disc_weight, at_least(0));
  v("disc_start", c.disc_start, at_least(0));
  v("disc_dim", c.disc_dim, at_least(1));
  v("disc_num_layers", c.disc_num_layers, between(1, 8));
  v("disc_adaptive_weight", c.disc_adaptive_weight);
}

/// Loss of discriminator logits: half the sum over the two kinds. `name` as in VqLossConfig.
/// quirk of "non-saturating": the official arguments of the cross entropy are swapped, so that
/// the fake logits get no gradient.
torch::Tensor discriminator_loss(const std::string& name, const torch::Tensor& real_logits,
                                 const torch::Tensor& fake_logits);

/// What the generator wants of the logits of its images.
torch::Tensor generator_adversarial_loss(const std::string& name, const torch::Tensor& fake_logits);

/// What to differentiate, and every term of it by name, detached scalars, float32.
struct LossTerms {
  torch::Tensor loss;
  std::vector<std::pair<std::string, torch::Tensor>> terms;
};

/// Holds the discriminator (trained, checkpointed by the caller) and LPIPS (frozen).
class VqLossImpl : public torch::nn::Module {
 public:
  /// lpips may be empty when perceptual_weight is 0, else Error(kInvalidArgument) says where its
  /// weights come from. image_size: side of the images, for the StyleGAN discriminator.
  VqLossImpl(const VqLossConfig& config, int64_t image_size, Lpips lpips);

  struct GeneratorInput {
    torch::Tensor image_B3HW;  ///< the batch, float32
    torch::Tensor recon_B3HW;  ///< its reconstruction, with its graph
    QuantizerLosses quantizer;
    int64_t step = 1;           ///< from 1: optimizer steps done + 1
    torch::Tensor last_weight;  ///< decoder->last_weight(), for disc_adaptive_weight
  };
  /// Terms: gen_loss, rec_loss, perceptual_loss, gen_adv_loss (both unweighted),
  /// disc_adaptive_weight, vq_loss, commit_loss, entropy_loss, codebook_usage. The discriminator
  /// gets no gradient; its batch norm sees the reconstructions.
  LossTerms generator_loss(const GeneratorInput& input);

  /// Call with the same batch and the old reconstruction. Terms: disc_loss (weighted),
  /// logits_real_mean, logits_fake_mean. Before disc_start the loss is exactly zero and so are the
  /// gradients (quirk: they exist, and the optimizer counts the step).
  LossTerms discriminator_loss(const torch::Tensor& image_B3HW, const torch::Tensor& recon_B3HW,
                               int64_t step);

  /// Who shares its batches: adaptive weight and batch norm are those of all ranks together, and
  /// both losses and their backward passes are collective. Borrows; null: this process has all.
  void set_ranks(nn::BatchRanks* ranks);

  /// Dtype of LPIPS and the discriminator: as VqganImpl::set_compute_dtype.
  void set_compute_dtype(torch::ScalarType dtype) { compute_dtype_ = dtype; }

  /// Its named parameters and buffers are the "discriminator" of official checkpoints. Null when
  /// disc_weight is 0; discriminator_loss must not be called then.
  Discriminator discriminator;
  /// Empty when perceptual_weight is 0.
  Lpips perceptual_loss{nullptr};

 private:
  torch::Tensor reconstruction_term(const GeneratorInput& input) const;
  torch::Tensor adaptive_weight(const GeneratorInput& input, const torch::Tensor& nll,
                                const torch::Tensor& adversarial) const;
  double disc_weight_at(int64_t step) const;
  torch::Tensor to_compute(const torch::Tensor& image_B3HW) const;

  VqLossConfig config_;
  nn::BatchRanks* ranks_ = nullptr;
  torch::ScalarType compute_dtype_ = torch::kFloat32;
};
TORCH_MODULE(VqLoss);

}  // namespace vgen::tokenizer
