#pragma once
// Whole images from a VAR engine and its tokenizer: drawing, and editing by given codes
// (arXiv:2404.02905; var.py: autoregressive_infer_cfg). L codes of an image, h the side of the last
// scale.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "vgen/infer/multi_scale_tokenizer.h"
#include "vgen/infer/var_engine.h"
#include "vgen/kernels/sample_token.h"

namespace vgen::infer {

struct VarSettings {
  /// Guidance in VAR's own convention: at scale k of K, with t = cfg_scale * k / (K - 1), logits
  /// are (1 + t) conditional - t null. 0 = off. (LlamaGen's cfg_scale counts from 1.)
  double cfg_scale = 0;
  /// top_k and top_p as everywhere: 0 and 1 are off. (quirk: the official VAR takes top_p = 0 for
  /// off.)
  kernels::TokenFilter filter = {};
  /// The next scale sees a mixture of the likely codes instead of the one drawn: smoother pictures,
  /// never for FID.
  bool more_smooth = false;
  uint64_t seed = 0;

  bool is_guided() const { return cfg_scale > 0; }
};

/// Throws Error(kInvalidArgument) for settings out of range, by the names of their options.
void validate(const VarSettings& settings);

struct VarRequest {
  uint64_t image = 0;         ///< its number: with the seed all that its randomness depends on
  int64_t label = 0;          ///< num_classes = no class
  at::Tensor given_L = {};    ///< codes to keep where is_kept_L says so, int64; both or none
  at::Tensor is_kept_L = {};  ///< bool
};

struct VarImages {
  at::Tensor code_BL;      ///< int64, on the CPU: the codes drawn, or given ones where kept
  at::Tensor latent_BZhh;  ///< what the decoder is given, on the tokenizer's device
  /// The same after each scale, only when asked for.
  std::vector<at::Tensor> latents = {};
};

struct VarProgress {
  bool keep_scales = false;                     ///< fill VarImages::latents
  std::function<void(int64_t)> on_tokens = {};  ///< called with the tokens of each scale
};

/// All requests in one batch. The engine and the tokenizer must have the same scales:
/// check_fits(). Throws Error(kInvalidArgument) for a label or given codes that do not fit,
/// (kDataCorrupt) when logits are not finite.
VarImages generate_var(VarEngine& engine, const MultiScaleTokenizer& tokenizer,
                       std::span<const VarRequest> requests, const VarSettings& settings,
                       const VarProgress& progress = {});

/// Throws Error(kInvalidArgument) where scales, codebook or channels differ, naming both values.
void check_fits(const var::VarConfig& config, const std::string& source,
                const MultiScaleTokenizer& tokenizer, const std::string& tokenizer_source);

/// Parts of the codes in the mixture that more_smooth shows the next scales (its helpers.py:
/// gumbel_softmax_with_rng): softmax((l (1 + ratio) + noise) / tau), tau = max(0.27 (1 - 0.95
/// ratio), 0.005), ratio = k / (K - 1) at scale k. filtered_V: logits l, -infinity where a code is
/// removed: its part is 0; at least one is not removed. noise_V: Gumbel noise. All of one size.
void mixture_parts(std::span<const float> filtered_V, std::span<const double> noise_V, double ratio,
                   std::span<float> part_V);

/// Which codes of every scale a mask keeps (demo_zero_shot_edit.ipynb): it is resized bilinearly
/// to each scale's side and compared with 0.5, the first one too; only a scale of one token is kept
/// whole, for it cannot be kept in part. mask_hh: floating (h, h), 1 = keep, h = patch_nums.back().
/// Returns bool (L).
at::Tensor kept_codes(const at::Tensor& mask_hh, const std::vector<int64_t>& patch_nums);

}  // namespace vgen::infer
