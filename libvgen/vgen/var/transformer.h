#pragma once
// VAR's transformer (arXiv:2404.02905; its var.py and basic_var.py): it predicts the codes of a
// scale, all at once, from the class and what the scales before it make of the image. The training
// forward; inference has an engine of its own. Names and order of parameters and buffers are the
// official state dict's. Written for one device.
//
// B batch, K scales, L tokens of all scales, P of the first one, l = tokens of scales 0 to
// last_scale, C width, Z channels of the tokenizer's latent, V codes.

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/pimpl.h>

#include <memory>
#include <vector>

#include "vgen/var/attention.h"
#include "vgen/var/config.h"
#include "vgen/var/layers.h"

namespace vgen::var {

/// fc2(gelu_tanh(fc1(x))).
class FeedForwardImpl : public torch::nn::Module {
 public:
  FeedForwardImpl(const VarConfig& config, c10::Device device);
  /// (B, L, C) to (B, L, C).
  torch::Tensor forward(const torch::Tensor& x_BLC);

 private:
  double dropout_p_;
  Linear fc1_{nullptr}, fc2_{nullptr};
};
TORCH_MODULE(FeedForward);

/// Attention and FFN, each behind a norm that the condition scales and shifts, and in front of a
/// gate that it sets. Both branches are dropped per sample with drop_path_p in training.
class BlockImpl : public torch::nn::Module {
 public:
  BlockImpl(const VarConfig& config, double drop_path_p, c10::Device device);
  /// cond: (B, C), or with shared_adaln the shared projection, (B, 1, 6, C). Returns (B, L, C) in
  /// the dtype of x_BLC.
  torch::Tensor forward(const torch::Tensor& x_BLC, const torch::Tensor& cond,
                        const std::vector<QueryGroup>& groups);

 private:
  double drop_path_p_, norm_eps_;
  torch::Tensor ada_gss_;  // (1, 1, 6, C), shared_adaln: added to the shared projection
  Attention attn_{nullptr};
  FeedForward ffn_{nullptr};
  AdaLin ada_lin_{nullptr};  // not with shared_adaln
};
TORCH_MODULE(Block);

/// The norm in front of the output matrix, scaled and shifted by the condition.
class HeadNormImpl : public torch::nn::Module {
 public:
  HeadNormImpl(const VarConfig& config, c10::Device device);
  /// x_BLC, cond_BC: float32. Returns (B, L, C).
  torch::Tensor forward(const torch::Tensor& x_BLC, const torch::Tensor& cond_BC);

 private:
  double norm_eps_;
  AdaLin ada_lin_{nullptr};
};
TORCH_MODULE(HeadNorm);

class VarTransformerImpl : public torch::nn::Module {
 public:
  /// Weights are drawn from LibTorch's default generator, but under nn::SkipInit; those of matrices
  /// may be deferred (tensor/deferred_init.h). kMeta: names and shapes alone. Throws
  /// Error(kInvalidArgument) for a config that VarConfig::validate refuses.
  explicit VarTransformerImpl(const VarConfig& config, c10::Device device = c10::kCPU);

  /// Logits of the codes of scales 0 to last_scale (-1 = all): (B, l, V), float32; position i is
  /// about code i.
  ///
  /// label_B: int64, 0..num_classes, num_classes = no class; labels are dropped by the caller.
  /// teacher_BMZ: float32, what the tokenizer's teacher_input() makes of the true codes, M >= l - P
  /// rows; rows behind them are not read. Throws Error(kInvalidArgument) for other shapes.
  ///
  /// Under autocast embeddings are computed in float32 and the hidden states between blocks are in
  /// autocast's dtype; without it all is float32.
  torch::Tensor forward(const torch::Tensor& label_B, const torch::Tensor& teacher_BMZ,
                        int64_t last_scale = -1);

  const VarConfig& config() const { return config_; }
  /// The units of sharding and of activation checkpointing: the blocks, first to last.
  std::vector<std::shared_ptr<torch::nn::Module>> blocks() const;

 private:
  void register_embeddings(c10::Device device);
  void initialise();
  torch::Tensor embed(const torch::Tensor& class_BC, const torch::Tensor& teacher_BMZ,
                      int64_t length);
  const std::vector<QueryGroup>& groups(int64_t last_scale, const torch::TensorOptions& options);

  VarConfig config_;
  torch::Tensor pos_start_1PC_, pos_1LC_;
  torch::Tensor lvl_1L_;          // buffer, int64: the scale of each token
  torch::Tensor attn_bias_11LL_;  // buffer of the checkpoints, 0 or -inf; query_groups() serves
  Linear word_embed_{nullptr};
  Embedding class_emb_{nullptr}, lvl_embed_{nullptr};
  AdaLin shared_ada_lin_{nullptr};  // shared_adaln
  torch::nn::ModuleList blocks_;
  HeadNorm head_nm_{nullptr};
  Linear head_{nullptr};

  // Of the last forward.
  int64_t groups_scale_ = -1;
  torch::TensorOptions groups_options_;
  std::vector<QueryGroup> groups_;
};
TORCH_MODULE(VarTransformer);

/// The mean over the batch of each sample's weighted sum, scalar. loss_Bl: cross entropies of the
/// tokens, nn::cross_entropy. weight_l: float32; all 1 / L gives the mean over tokens.
torch::Tensor var_loss(const torch::Tensor& loss_Bl, const torch::Tensor& weight_l);

}  // namespace vgen::var
