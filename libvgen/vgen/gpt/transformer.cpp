#include "vgen/gpt/transformer.h"

#include <torch/torch.h>

#include <cmath>

#include "vgen/nn/cross_entropy.h"
#include "vgen/nn/dropout.h"
#include "vgen/nn/narrow.h"
#include "vgen/nn/rotary.h"
#include "vgen/nn/swiglu.h"
#include "vgen/tensor/block.h"
#include "vgen/tensor/deferred_init.h"

namespace vgen::gpt {

namespace {

torch::nn::Linear linear(int64_t in, int64_t out) {
  torch::nn::Linear layer(torch::nn::LinearOptions(in, out).bias(false));
  defer_weight(layer->weight);
  return layer;
}

torch::nn::Embedding embedding(int64_t rows, int64_t dim) {
  torch::nn::Embedding layer(rows, dim);
  defer_weight(layer->weight);
  return layer;
}

// Stochastic depth per sample (arXiv:1603.09382): kept samples are scaled by 1 / (1 - p).
torch::Tensor drop_path(const torch::Tensor& x_BSC, double p, bool is_training) {
  if (p == 0 || !is_training) return x_BSC;
  const auto keep = torch::empty({x_BSC.size(0), 1, 1}, x_BSC.options()).bernoulli_(1 - p);
  return p < 1 ? x_BSC * keep / (1 - p) : x_BSC * keep;
}

}  // namespace

AttentionImpl::AttentionImpl(const GptConfig& config)
    : n_head_(config.n_head),
      n_kv_head_(config.num_kv_heads()),
      dropout_p_(config.resid_dropout_p) {
  const int64_t num_heads = n_head_ + 2 * n_kv_head_;
  wqkv_ = register_module("wqkv", linear(config.dim, num_heads * config.head_dim()));
  wo_ = register_module("wo", linear(config.dim, config.dim));
}

torch::Tensor AttentionImpl::forward(const torch::Tensor& x_BSC, const torch::Tensor& rope_SP2,
                                     const torch::Tensor& mask_B1SS) {
  const auto heads =
      nn::rotary_heads(nn::linear(x_BSC, wqkv_->weight), rope_SP2, n_head_, n_kv_head_);
  const bool is_causal = !mask_B1SS.defined();
  const auto mixed = nn::attention(
      heads.query_BHSD, heads.key_BKSD, heads.value_BKSD,
      {.mask = mask_B1SS, .is_causal = is_causal, .has_groups = n_kv_head_ != n_head_});
  const auto out_BSC = nn::linear(mixed.transpose(1, 2).flatten(2), wo_->weight);
  return nn::dropout(out_BSC, dropout_p_, is_training());
}

FeedForwardImpl::FeedForwardImpl(const GptConfig& config) : dropout_p_(config.ffn_dropout_p) {
  w1_ = register_module("w1", linear(config.dim, config.ffn_dim()));
  w3_ = register_module("w3", linear(config.dim, config.ffn_dim()));
  w2_ = register_module("w2", linear(config.ffn_dim(), config.dim));
}

torch::Tensor FeedForwardImpl::forward(const torch::Tensor& x_BSC) {
  const auto gated = nn::swiglu(nn::linear(x_BSC, w1_->weight), nn::linear(x_BSC, w3_->weight));
  return nn::dropout(nn::linear(gated, w2_->weight), dropout_p_, is_training());
}

BlockImpl::BlockImpl(const GptConfig& config, double drop_path_p) : drop_path_p_(drop_path_p) {
  attention_ = register_module("attention", Attention(config));
  feed_forward_ = register_module("feed_forward", FeedForward(config));
  attention_norm_ = register_module("attention_norm", nn::RmsNorm(config.dim, config.norm_eps));
  ffn_norm_ = register_module("ffn_norm", nn::RmsNorm(config.dim, config.norm_eps));
}

torch::Tensor BlockImpl::forward(const torch::Tensor& x_BSC, const torch::Tensor& rope_SP2,
                                 const torch::Tensor& mask_B1SS) {
  const auto attended = attention_(attention_norm_(x_BSC), rope_SP2, mask_B1SS);
  const auto hidden_BSC = x_BSC + drop_path(attended, drop_path_p_, is_training());
  const auto fed = feed_forward_(ffn_norm_(hidden_BSC));
  return hidden_BSC + drop_path(fed, drop_path_p_, is_training());
}

CaptionProjectionImpl::CaptionProjectionImpl(const GptConfig& config) {
  fc1_ = register_module("fc1", linear(config.caption_dim, config.dim));
  fc2_ = register_module("fc2", linear(config.dim, config.dim));
}

torch::Tensor CaptionProjectionImpl::forward(const torch::Tensor& x) {
  return nn::linear(at::gelu(nn::linear(x, fc1_->weight), "tanh"), fc2_->weight);
}

ConditionEmbeddingImpl::ConditionEmbeddingImpl(const GptConfig& config) {
  if (config.model_type == "c2i") {
    embedding_table_ =
        register_module("embedding_table", embedding(config.class_rows(), config.dim));
    return;
  }
  const auto noise = torch::randn({config.cls_token_num, config.caption_dim});
  uncond_embedding_ = register_buffer("uncond_embedding",
                                      noise / std::sqrt(static_cast<double>(config.caption_dim)));
  cap_proj_ = register_module("cap_proj", CaptionProjection(config));
}

torch::Tensor ConditionEmbeddingImpl::forward(const torch::Tensor& condition,
                                              const torch::Tensor& is_dropped_B) {
  if (embedding_table_) return embedding_table_(condition).unsqueeze(1);
  auto caption_BTF = condition.to(uncond_embedding_.scalar_type());
  if (is_dropped_B.defined()) {
    caption_BTF = torch::where(is_dropped_B.view({-1, 1, 1}), uncond_embedding_, caption_BTF);
  }
  return cap_proj_(caption_BTF);
}

TransformerImpl::TransformerImpl(const GptConfig& config) : config_(config) {
  config.validate();
  cls_embedding_ = register_module("cls_embedding", ConditionEmbedding(config));
  tok_embeddings_ = register_module("tok_embeddings", embedding(config.vocab_size, config.dim));
  layers_ = register_module("layers", torch::nn::ModuleList());
  for (int64_t i = 0; i < config.n_layer; ++i) {
    const double depth = config.n_layer == 1 ? 0 : static_cast<double>(i) / (config.n_layer - 1);
    layers_->push_back(Block(config, config.drop_path_rate * depth));
  }
  norm_ = register_module("norm", nn::RmsNorm(config.dim, config.norm_eps));
  output_ = register_module("output", linear(config.dim, config.vocab_size));
  rope_SP2_ = nn::rotary_table_2d(config.grid_size(), config.head_dim(), config.rope_base,
                                  config.cls_token_num);
  initialise();
}

void TransformerImpl::initialise() {
  const auto draw_normal = [std = config_.initializer_range](const torch::Tensor& weight,
                                                             const auto& random) {
    weight.normal_(0, std, random);
  };
  for (const auto& module : modules(/*include_self=*/false)) {
    if (auto* linear = module->as<torch::nn::Linear>()) {
      draw_weight(linear->weight, draw_normal);
    } else if (auto* embedding = module->as<torch::nn::Embedding>()) {
      draw_weight(embedding->weight, draw_normal);
    }
  }
  // The first loss is exactly ln(vocab_size).
  change_weight(output_->weight, [](const torch::Tensor& weight) { weight.zero_(); });
}

std::vector<std::shared_ptr<torch::nn::Module>> TransformerImpl::blocks() const {
  return {layers_->begin(), layers_->end()};
}

torch::Tensor TransformerImpl::forward(const GptBatch& batch) {
  const int64_t num_codes = batch.code_BN.size(1);
  require(num_codes >= 1 && num_codes <= config_.block_size, ErrorCode::kInvalidArgument,
          "gpt: ", num_codes, " codes per sample, expected 1 to block_size ", config_.block_size);
  const auto condition_BTC = cls_embedding_(batch.condition, batch.is_dropped_B);
  const int64_t num_condition_tokens = condition_BTC.size(1);
  require(num_condition_tokens == config_.cls_token_num, ErrorCode::kInvalidArgument,
          "gpt: ", num_condition_tokens, " condition tokens, expected cls_token_num ",
          config_.cls_token_num);
  const auto token_BNC = tok_embeddings_(batch.code_BN.slice(1, 0, num_codes - 1));
  auto x_BSC = nn::dropout(torch::cat({condition_BTC, token_BNC}, 1), config_.token_dropout_p,
                           is_training());
  if (rope_SP2_.device() != x_BSC.device()) rope_SP2_ = rope_SP2_.to(x_BSC.device());
  const auto rope_SP2 = rope_SP2_.slice(0, 0, x_BSC.size(1));
  for (const auto& layer : *layers_) {
    auto* block = layer->as<Block>();
    const auto forward = [block, rope_SP2,
                          mask_B1SS = batch.mask_B1SS](const std::vector<torch::Tensor>& inputs) {
      return block->forward(inputs[0], rope_SP2, mask_B1SS);
    };
    x_BSC = run_block(*block, {x_BSC}, forward);
  }
  x_BSC = norm_(x_BSC.slice(1, num_condition_tokens - 1));
  return nn::linear(x_BSC, output_->weight);
}

torch::Tensor gpt_loss(const torch::Tensor& logits_BNV, const torch::Tensor& code_BN,
                       const torch::Tensor& valid_B) {
  const auto loss_BN = nn::cross_entropy(logits_BNV, code_BN);
  if (!valid_B.defined()) return loss_BN.mean();
  const auto weight_B1 = valid_B.to(torch::kFloat32).unsqueeze(1);
  const auto count = (weight_B1.sum() * code_BN.size(1)).clamp_min(1);
  return (loss_BN * weight_B1).sum() / count;
}

torch::Tensor caption_attention_mask(const torch::Tensor& caption_mask_BT,
                                     int64_t num_image_tokens) {
  const int64_t batch = caption_mask_BT.size(0), num_caption = caption_mask_BT.size(1);
  const int64_t length = num_caption + num_image_tokens - 1;
  const auto options = caption_mask_BT.options().dtype(torch::kBool);
  const auto causal = torch::ones({length, length}, options).tril();
  const auto image = torch::ones({batch, num_image_tokens - 1}, options);
  const auto column_BS = torch::cat({caption_mask_BT.to(torch::kBool), image}, 1);
  const auto diagonal = torch::eye(length, options);
  return (causal.logical_and(column_BS.unsqueeze(1)).logical_or(diagonal)).unsqueeze(1);
}

}  // namespace vgen::gpt
