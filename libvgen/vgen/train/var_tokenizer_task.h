#pragma once
// Training of VAR's image tokenizer, the multi-scale VQVAE (arXiv:2404.02905): the task `tokenizer`
// with another model. VAR's own loop is not published; its paper names the losses, which are those
// of LlamaGen's VQGAN: reconstruction, LPIPS, a discriminator and the quantizer's.

#include "vgen/tokenizer/codebook_care.h"
#include "vgen/tokenizer/multi_scale_vqvae.h"
#include "vgen/train/tokenizer_task.h"

namespace vgen::train {

struct VarTokenizerRunConfig : TokenizerRecipe {  // task: var_tokenizer
  tokenizer::MultiScaleVqvaeConfig model;
  tokenizer::CodebookCareConfig codebook;
};
template <class Visitor>
void visit_fields(Visitor& v, VarTokenizerRunConfig& c) {
  visit_fields(v, c.run);
  v("model", c.model);
  v("codebook", c.codebook);
  visit_recipe(v, c);
}

/// Throws Error(kInvalidArgument) where the sections do not fit together.
void validate(const VarTokenizerRunConfig& config);

/// Terms of a training step: those of VqLossImpl::generator_loss, where vq_loss is the quantizer's
/// whole loss, commitment included, and codebook_usage the share of codes that some scale uses;
/// dead_codes, the number of those that none uses; reseeded_codes; usage_pP, the share of codes
/// that the scale of side P uses; error_pP, the share of the latent's mean square that the scales
/// up to the one of side P leave untold (with scale_dropout those that count for an image). "Uses":
/// codebook_care.h, used_codes_KV with `reseed_below`.
///
/// code_metrics(): codebook_usage, dead_codes and usage_pP of the images themselves, and
/// rec_loss_pP, the mean square error of the picture after the scale of side P, in [-1, 1], over
/// every batch, or every n-th so that about 32 are looked at: each image costs K more pictures.
std::unique_ptr<TokenizerModel> make_multi_scale_model(const VarTokenizerRunConfig& config,
                                                       uint64_t seed);

/// TokenizerTask of such a config, for plan_run().
class VarTokenizerTask : public TokenizerTask {
 public:
  VarTokenizerTask(const VarTokenizerRunConfig& config, const TaskContext& context);

  /// The sides of the scales, which no tensor tells: "patch_nums" is "[1, 2, 4]".
  io::Metadata metadata() const override;
  std::vector<std::string> headline() const override { return {"gen_loss", "rec_loss"}; }
  /// The headline, then one field each for usage_pP, dead_codes and error_pP, coarse to fine:
  /// "gen_loss 0.0125 | rec_loss 0.0027 | usage 5.9 16 89 % | dead 17 | error 81 35 7.2 %".
  std::string headline_text(const Metrics& means) const override;

 private:
  std::vector<int64_t> patch_nums_;
};

}  // namespace vgen::train
