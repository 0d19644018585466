#pragma once
// From logits to a token: guidance, temperature, top-k, top-p, one draw (LlamaGen's generate.py:
// top_k_top_p_filtering, sample). V vocabulary, R rows.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "vgen/kernels/decode_kernels.h"

namespace vgen::kernels {

struct TokenFilter {
  double temperature = 1;  ///< logits are divided by max(temperature, 1e-5)
  int64_t top_k = 0;       ///< keep the k largest and all that equal the k-th; 0 = off
  double top_p = 1;        ///< of those keep the most likely whose sum reaches p; 1 = off
  bool is_greedy = false;  ///< the largest instead of a draw
};

/// Scratch of one thread, reused from token to token.
class TokenSampler {
 public:
  TokenSampler(int64_t vocab_size, CpuIsa isa);

  /// conditional_V + (conditional_V - null_V) * ..., as LlamaGen guides: null + (conditional -
  /// null) * cfg_scale; an empty null_V means no guidance. `uniform` in [0, 1) is the only
  /// randomness: the token is where the cumulative probability, in the order of the vocabulary,
  /// passes it. Throws Error(kDataCorrupt) when the logits are not finite.
  int64_t sample(std::span<const float> conditional_V, std::span<const float> null_V,
                 double cfg_scale, const TokenFilter& filter, double uniform);

  /// The filtered logits of the last sample(): removed ones are -infinity.
  std::span<const float> filtered() const { return logits_; }
  /// The probabilities of the last sample(), when it was not greedy.
  std::span<const float> probabilities() const { return weights_; }

 private:
  float kth_largest(int64_t k, float maximum);
  float nucleus_threshold(double top_p);
  int64_t draw(double uniform) const;
  int64_t bucket(float logit, float maximum) const;

  const DecodeKernels* kernels_;
  std::vector<float> logits_, weights_, candidates_;
  std::vector<int64_t> counts_;
  std::vector<double> sums_;
};

/// What TokenSampler draws, for R rows at once by LibTorch's operators on their device: logits
/// float32 (R, V), null_RV undefined for no guidance, uniform_R float64 on the CPU. Returns int64
/// (R) on the device of the logits. Throws as TokenSampler::sample.
at::Tensor sample_tokens(const at::Tensor& conditional_RV, const at::Tensor& null_RV,
                         double cfg_scale, const TokenFilter& filter, const at::Tensor& uniform_R);

}  // namespace vgen::kernels
