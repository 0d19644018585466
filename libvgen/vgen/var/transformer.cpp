#include "vgen/var/transformer.h"

#include <torch/torch.h>

#include <cmath>
#include <limits>

#include "vgen/nn/adaln.h"
#include "vgen/nn/dropout.h"
#include "vgen/nn/gelu.h"
#include "vgen/nn/skip_init.h"
#include "vgen/tensor/autocast.h"
#include "vgen/tensor/block.h"
#include "vgen/tensor/deferred_init.h"

namespace vgen::var {

namespace {

// Stochastic depth per sample (arXiv:1603.09382): gates of kept samples are scaled by 1 / (1 - p).
torch::Tensor drop_path(const torch::Tensor& gate_B1C, double p, bool is_training) {
  if (p == 0 || !is_training) return gate_B1C;
  const auto options = gate_B1C.options().dtype(torch::kFloat32);
  const auto keep_B11 = torch::empty({gate_B1C.size(0), 1, 1}, options).bernoulli_(1 - p);
  return gate_B1C * (p < 1 ? keep_B11 / (1 - p) : keep_B11).to(gate_B1C.scalar_type());
}

// Normal, clamped to +-2, where trunc_normal_ of the official code never draws what lies beyond. At
// the published widths that is 60 standard deviations and more, so none does; with an init_std near
// 1 values would pile up at the ends.
void draw_normal(const torch::Tensor& weight, double std) {
  draw_weight(weight, [std](const torch::Tensor& values, const auto& random) {
    values.normal_(0, std, random).clamp_(-2, 2);
  });
}

// Rows of a weight from `begin` on, times a factor.
void scale_rows(const torch::Tensor& weight, double factor, int64_t begin = 0,
                std::optional<int64_t> end = {}) {
  change_weight(weight,
                [=](const torch::Tensor& values) { values.slice(0, begin, end).mul_(factor); });
}

}  // namespace

FeedForwardImpl::FeedForwardImpl(const VarConfig& config, c10::Device device)
    : dropout_p_(config.dropout_p) {
  fc1_ = register_module("fc1", Linear(config.width(), config.ffn_dim(), device));
  fc2_ = register_module("fc2", Linear(config.ffn_dim(), config.width(), device));
}

torch::Tensor FeedForwardImpl::forward(const torch::Tensor& x_BLC) {
  return nn::dropout(fc2_(nn::gelu(fc1_(x_BLC))), dropout_p_, is_training());
}

BlockImpl::BlockImpl(const VarConfig& config, double drop_path_p, c10::Device device)
    : drop_path_p_(drop_path_p), norm_eps_(config.norm_eps) {
  const int64_t width = config.width();
  if (config.shared_adaln) {
    ada_gss_ = register_parameter("ada_gss", torch::empty({1, 1, 6, width}, device));
  }
  attn_ = register_module("attn", Attention(config, device));
  ffn_ = register_module("ffn", FeedForward(config, device));
  if (!config.shared_adaln) ada_lin_ = register_module("ada_lin", AdaLin(width, 6, device));
}

torch::Tensor BlockImpl::forward(const torch::Tensor& x_BLC, const torch::Tensor& cond,
                                 const std::vector<QueryGroup>& groups) {
  // Gates, scales and shifts, of attention and FFN each; (B, 1, C).
  const auto parts = (ada_lin_ ? ada_lin_(cond) : ada_gss_ + cond).unbind(2);
  const auto gate_of = [&](int64_t branch) {
    return drop_path(parts[static_cast<size_t>(branch)], drop_path_p_, is_training());
  };
  const auto attended_BLC = attn_(nn::modulated_norm(x_BLC, parts[2], parts[4], norm_eps_), groups);
  const auto hidden_BLC = nn::gated_sum(x_BLC, attended_BLC, gate_of(0));
  const auto fed_BLC = ffn_(nn::modulated_norm(hidden_BLC, parts[3], parts[5], norm_eps_));
  return nn::gated_sum(hidden_BLC, fed_BLC, gate_of(1));
}

HeadNormImpl::HeadNormImpl(const VarConfig& config, c10::Device device)
    : norm_eps_(config.norm_eps) {
  ada_lin_ = register_module("ada_lin", AdaLin(config.width(), 2, device));
}

torch::Tensor HeadNormImpl::forward(const torch::Tensor& x_BLC, const torch::Tensor& cond_BC) {
  const auto parts = ada_lin_(cond_BC).unbind(2);
  return nn::modulated_norm(x_BLC, parts[0], parts[1], norm_eps_);
}

VarTransformerImpl::VarTransformerImpl(const VarConfig& config, c10::Device device)
    : config_(config) {
  config.validate();
  register_embeddings(device);
  if (config.shared_adaln) {
    shared_ada_lin_ = register_module("shared_ada_lin", AdaLin(config.width(), 6, device));
  }
  blocks_ = register_module("blocks", torch::nn::ModuleList());
  for (int64_t i = 0; i < config.depth; ++i) {
    const double share = config.depth == 1 ? 0 : static_cast<double>(i) / (config.depth - 1);
    blocks_->push_back(Block(config, config.max_drop_path() * share, device));
  }
  head_nm_ = register_module("head_nm", HeadNorm(config, device));
  head_ = register_module("head", Linear(config.width(), config.codebook_size, device));
  if (device.type() != c10::kMeta && !nn::SkipInit::is_active()) initialise();
}

void VarTransformerImpl::register_embeddings(c10::Device device) {
  const int64_t width = config_.width(), length = config_.num_tokens();
  pos_start_1PC_ =
      register_parameter("pos_start", torch::empty({1, config_.scale_end(0), width}, device));
  pos_1LC_ = register_parameter("pos_1LC", torch::empty({1, length, width}, device));
  const auto lvl_1L = torch::empty({1, length}, torch::kLong);
  for (int64_t k = 0; k < config_.num_scales(); ++k) {
    lvl_1L.slice(1, config_.scale_begin(k), config_.scale_end(k)).fill_(k);
  }
  auto bias_11LL = torch::zeros({1, 1, length, length});
  bias_11LL.masked_fill_(lvl_1L.view({1, 1, 1, length}) > lvl_1L.view({1, 1, length, 1}),
                         -std::numeric_limits<double>::infinity());
  lvl_1L_ = register_buffer("lvl_1L", lvl_1L.to(device));
  attn_bias_11LL_ = register_buffer("attn_bias_for_masking", bias_11LL.to(device));
  word_embed_ = register_module("word_embed", Linear(config_.z_channels, width, device));
  class_emb_ = register_module("class_emb", Embedding(config_.num_classes + 1, width, device));
  lvl_embed_ = register_module("lvl_embed", Embedding(config_.num_scales(), width, device));
}

void VarTransformerImpl::initialise() {
  const torch::NoGradGuard no_grad;
  const auto width = static_cast<double>(config_.width());
  const double default_std = std::sqrt(1 / (3 * width));
  const double std = config_.init_std < 0 ? default_std : config_.init_std;
  for (const auto& module : modules(/*include_self=*/false)) {
    if (auto* linear = module->as<Linear>()) {
      draw_normal(linear->weight, std);
      if (linear->bias.defined()) linear->bias.zero_();
    } else if (auto* embedding = module->as<Embedding>()) {
      draw_normal(embedding->weight, std);
    }
  }
  draw_normal(pos_start_1PC_, default_std);
  draw_normal(pos_1LC_, default_std);

  // The first logits are nearly even, the first gates nearly shut. The shared projection is left as
  // it is.
  scale_rows(head_->weight, config_.init_head);
  const double branch_scale = 1 / std::sqrt(2.0 * static_cast<double>(config_.depth));
  for (auto& item : named_parameters()) {
    const std::string& name = item.key();
    torch::Tensor& weight = item.value();
    if (name.ends_with("attn.proj.weight") || name.ends_with("ffn.fc2.weight")) {
      scale_rows(weight, branch_scale);
    } else if (name == "head_nm.ada_lin.1.weight") {
      scale_rows(weight, config_.init_adaln);
    } else if (name.ends_with(".ada_lin.1.weight")) {  // of a block; rows: gates first
      scale_rows(weight, config_.init_adaln_gamma, 0, 2 * config_.width());
      scale_rows(weight, config_.init_adaln, 2 * config_.width());
    } else if (name.ends_with(".ada_gss")) {
      weight.normal_(0, 1 / std::sqrt(width));
      weight.slice(2, 0, 2).mul_(config_.init_adaln_gamma);
      weight.slice(2, 2).mul_(config_.init_adaln);
    }
  }
}

std::vector<std::shared_ptr<torch::nn::Module>> VarTransformerImpl::blocks() const {
  return {blocks_->begin(), blocks_->end()};
}

const std::vector<QueryGroup>& VarTransformerImpl::groups(int64_t last_scale,
                                                          const torch::TensorOptions& options) {
  const bool is_same = groups_scale_ == last_scale &&
                       groups_options_.device_opt() == options.device_opt() &&
                       groups_options_.dtype_opt() == options.dtype_opt();
  if (!is_same) {
    // Of narrow numbers CUDA has a fast kernel for all of it under one mask; elsewhere that loses
    // more in what the mask hides than it saves (`vgen bench var-attention`).
    const bool is_masked_whole = options.device().is_cuda() && options.dtype().itemsize() == 2;
    groups_ = query_groups(config_, last_scale, options,
                           is_masked_whole ? config_.num_tokens() : kMaskedTokens);
    groups_scale_ = last_scale;
    groups_options_ = options;
  }
  return groups_;
}

torch::Tensor VarTransformerImpl::embed(const torch::Tensor& class_BC,
                                        const torch::Tensor& teacher_BMZ, int64_t length) {
  const auto start_BPC = class_BC.unsqueeze(1) + pos_start_1PC_;
  const int64_t rows = length - config_.scale_end(0);
  const auto word_BMC = word_embed_(teacher_BMZ.slice(1, 0, rows).to(torch::kFloat32));
  const auto place_1LC = lvl_embed_(lvl_1L_.slice(1, 0, length)) + pos_1LC_.slice(1, 0, length);
  return torch::cat({start_BPC, word_BMC}, 1) + place_1LC;
}

torch::Tensor VarTransformerImpl::forward(const torch::Tensor& label_B,
                                          const torch::Tensor& teacher_BMZ, int64_t last_scale) {
  const int64_t last = last_scale == -1 ? config_.num_scales() - 1 : last_scale;
  require(last >= 0 && last < config_.num_scales(), ErrorCode::kInvalidArgument, "var: last_scale ",
          last_scale, ", expected -1 to ", config_.num_scales() - 1);
  const int64_t length = config_.scale_end(last), rows = length - config_.scale_end(0);
  require(label_B.dim() == 1 && teacher_BMZ.dim() == 3 && teacher_BMZ.size(0) == label_B.size(0) &&
              teacher_BMZ.size(1) >= rows && teacher_BMZ.size(2) == config_.z_channels,
          ErrorCode::kInvalidArgument, "var: labels ", format_shape(label_B.sizes().vec()),
          " with a teacher input ", format_shape(teacher_BMZ.sizes().vec()),
          ", expected [B] and [B, ", rows, ", ", config_.z_channels, "]");
  torch::Tensor class_BC, x_BLC;
  {
    const Autocast off(label_B.device(), c10::kFloat);
    class_BC = class_emb_(label_B);
    x_BLC = embed(class_BC, teacher_BMZ, length);
  }
  // quirk: in mixed precision the sums over the branches are narrow too, not only the products.
  const c10::ScalarType dtype = autocast_dtype(x_BLC.device(), torch::kFloat32);
  x_BLC = x_BLC.to(dtype);
  const auto cond = (shared_ada_lin_ ? shared_ada_lin_(class_BC) : class_BC).to(dtype);
  const std::vector<QueryGroup> query_groups = groups(last, x_BLC.options());
  for (const auto& module : *blocks_) {
    auto* block = module->as<Block>();
    const auto forward = [block, query_groups](const std::vector<torch::Tensor>& inputs) {
      return block->forward(inputs[0], inputs[1], query_groups);
    };
    x_BLC = run_block(*block, {x_BLC, cond}, forward);
  }
  return head_(head_nm_(x_BLC.to(torch::kFloat32), class_BC)).to(torch::kFloat32);
}

torch::Tensor var_loss(const torch::Tensor& loss_Bl, const torch::Tensor& weight_l) {
  return (loss_Bl * weight_l).sum(1).mean();
}

}  // namespace vgen::var
