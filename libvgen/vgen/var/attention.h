#pragma once
// VAR's self-attention (arXiv:2404.02905; basic_var.py: SelfAttention) over the tokens of all
// scales at once, for training. B batch, L tokens, C width, H heads, D = C / H; Q queries and
// M keys of a group.

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <vector>

#include "vgen/var/config.h"
#include "vgen/var/layers.h"

namespace vgen::var {

/// Tokens [begin, end) are queries to keys [0, end).
struct QueryGroup {
  int64_t begin = 0;
  int64_t end = 0;
  torch::Tensor mask_11QM = {};  ///< floating, added: 0 or -inf; undefined = every key is seen
};

constexpr int64_t kMaskedTokens = 256;

/// A scale sees itself and those before it. This is cut along the queries: the queries of one scale
/// see all of their keys and need no mask, but small scales are not worth an operator of their own.
/// So neighbours with up to `max_masked_tokens` queries together share one, with a mask between
/// them, which is the same for all heads and samples. 1: each scale alone; L: one masked call. At
/// 256 pixels the default makes three calls, of 255 masked, 169 and 256 queries: two thirds of the
/// products of one masked call, and most of them where kernels without a mask serve.
/// Scales 0 to last_scale; masks in the dtype and on the device of `options`.
std::vector<QueryGroup> query_groups(const VarConfig& config, int64_t last_scale,
                                     const torch::TensorOptions& options,
                                     int64_t max_masked_tokens = kMaskedTokens);

class AttentionImpl : public torch::nn::Module {
 public:
  AttentionImpl(const VarConfig& config, c10::Device device);
  /// x_BLC: hidden states; L is the end of the last group, the groups follow one another. Returns
  /// (B, L, C), under autocast in its dtype, else in that of x_BLC.
  torch::Tensor forward(const torch::Tensor& x_BLC, const std::vector<QueryGroup>& groups);

 private:
  int64_t n_head_;
  bool use_l2_norm_;
  double softmax_scale_, dropout_p_, attn_dropout_p_;
  torch::Tensor scale_mul_1H11_, q_bias_, v_bias_;
  torch::Tensor zero_k_bias_;  // a buffer: keys have no bias
  Linear mat_qkv_{nullptr}, proj_{nullptr};
};
TORCH_MODULE(Attention);

}  // namespace vgen::var
