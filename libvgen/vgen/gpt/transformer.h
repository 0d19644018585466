#pragma once
// LlamaGen's transformer for training (arXiv:2406.06525; its gpt.py: Transformer). Parameter names
// are the official state dict's. Written for one device; inference has an engine of its own.
// B batch, T condition tokens, N image tokens, S sequence, C = dim, F FFN width, V vocabulary.

#include <torch/nn/module.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <memory>
#include <vector>

#include "vgen/gpt/config.h"
#include "vgen/nn/rms_norm.h"

namespace vgen::gpt {

/// Causal self-attention with grouped queries and 2-D rotary positions.
class AttentionImpl : public torch::nn::Module {
 public:
  explicit AttentionImpl(const GptConfig& config);
  /// x_BSC: hidden states. rope_SP2: (cos, sin) of the S positions, float32. mask_B1SS: bool, true
  /// = may attend; undefined = causal. Returns (B, S, C) in the dtype of x_BSC.
  torch::Tensor forward(const torch::Tensor& x_BSC, const torch::Tensor& rope_SP2,
                        const torch::Tensor& mask_B1SS);

 private:
  int64_t n_head_, n_kv_head_;
  double dropout_p_;
  torch::nn::Linear wqkv_{nullptr}, wo_{nullptr};
};
TORCH_MODULE(Attention);

/// w2(silu(w1 x) * w3 x), arXiv:2002.05202.
class FeedForwardImpl : public torch::nn::Module {
 public:
  explicit FeedForwardImpl(const GptConfig& config);
  /// (B, S, C) to (B, S, C).
  torch::Tensor forward(const torch::Tensor& x_BSC);

 private:
  double dropout_p_;
  torch::nn::Linear w1_{nullptr}, w3_{nullptr}, w2_{nullptr};
};
TORCH_MODULE(FeedForward);

/// Pre-norm block; both branches are dropped per sample with drop_path_p in training.
class BlockImpl : public torch::nn::Module {
 public:
  BlockImpl(const GptConfig& config, double drop_path_p);
  /// As AttentionImpl::forward.
  torch::Tensor forward(const torch::Tensor& x_BSC, const torch::Tensor& rope_SP2,
                        const torch::Tensor& mask_B1SS);

 private:
  double drop_path_p_;
  Attention attention_{nullptr};
  FeedForward feed_forward_{nullptr};
  nn::RmsNorm attention_norm_{nullptr}, ffn_norm_{nullptr};
};
TORCH_MODULE(Block);

/// Two-layer projection of caption features, GELU(tanh) between.
class CaptionProjectionImpl : public torch::nn::Module {
 public:
  explicit CaptionProjectionImpl(const GptConfig& config);
  torch::Tensor forward(const torch::Tensor& x);

 private:
  torch::nn::Linear fc1_{nullptr}, fc2_{nullptr};
};
TORCH_MODULE(CaptionProjection);

/// Condition tokens: a row per class (c2i), or projected caption features (t2i).
class ConditionEmbeddingImpl : public torch::nn::Module {
 public:
  explicit ConditionEmbeddingImpl(const GptConfig& config);
  /// c2i: condition is int64 (B) labels. t2i: (B, T, caption_dim) features; samples where
  /// is_dropped_B (bool, may be undefined) get the unconditional embedding. Returns (B, T, C).
  torch::Tensor forward(const torch::Tensor& condition, const torch::Tensor& is_dropped_B);

  /// t2i: the features that stand for no caption, (T, caption_dim), a buffer that is not trained.
  const torch::Tensor& uncond_embedding() const { return uncond_embedding_; }

 private:
  torch::nn::Embedding embedding_table_{nullptr};
  torch::Tensor uncond_embedding_;
  CaptionProjection cap_proj_{nullptr};
};
TORCH_MODULE(ConditionEmbedding);

/// What one forward pass reads.
struct GptBatch {
  torch::Tensor code_BN;    ///< int64 image codes, 0..V-1; the last column is only predicted
  torch::Tensor condition;  ///< c2i: int64 (B), num_classes = none; t2i: (B, T, caption_dim)
  torch::Tensor is_dropped_B = {};  ///< t2i: bool, captions replaced by the unconditional embedding
  torch::Tensor mask_B1SS = {};     ///< bool, true = may attend, S = T + N - 1; undefined = causal
};

class TransformerImpl : public torch::nn::Module {
 public:
  /// Weights are drawn from LibTorch's default generator; those of matrices may be deferred
  /// (tensor/deferred_init.h). Throws Error(kInvalidArgument) for a config that
  /// GptConfig::validate refuses.
  explicit TransformerImpl(const GptConfig& config);

  /// Logits of every image token given the condition and the tokens before: (B, N, V), in the dtype
  /// of matrix products (float32, under autocast its own); position i predicts code_BN[:, i].
  torch::Tensor forward(const GptBatch& batch);

  const GptConfig& config() const { return config_; }
  /// The units of sharding and of activation checkpointing: the layers, first to last.
  std::vector<std::shared_ptr<torch::nn::Module>> blocks() const;

 private:
  void initialise();

  GptConfig config_;
  ConditionEmbedding cls_embedding_{nullptr};
  torch::nn::Embedding tok_embeddings_{nullptr};
  torch::nn::ModuleList layers_;
  nn::RmsNorm norm_{nullptr};
  torch::nn::Linear output_{nullptr};
  torch::Tensor rope_SP2_;  // not part of the state dict
};
TORCH_MODULE(Transformer);

/// Mean of nn::cross_entropy of logits_BNV against code_BN, float32 scalar. valid_B (t2i, may be
/// undefined): weights of the samples; sum(ce * valid) / max(N * sum(valid), 1).
torch::Tensor gpt_loss(const torch::Tensor& logits_BNV, const torch::Tensor& code_BN,
                       const torch::Tensor& valid_B = {});

/// Mask of captions padded on the left: causal, masked caption columns off, the diagonal on.
/// caption_mask_BT: 1 = token, 0 = padding. Returns bool (B, 1, S, S), S = T + num_image_tokens
/// - 1.
torch::Tensor caption_attention_mask(const torch::Tensor& caption_mask_BT,
                                     int64_t num_image_tokens);

}  // namespace vgen::gpt
