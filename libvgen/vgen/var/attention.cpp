#include "vgen/var/attention.h"

#include <torch/torch.h>

#include <cmath>
#include <limits>

#include "vgen/nn/dropout.h"
#include "vgen/nn/narrow.h"
#include "vgen/nn/unit_heads.h"

namespace vgen::var {

namespace {

const double kInitialScale = std::log(4.0);
const double kMaxScale = std::log(100.0);

// 0 where the query's scale is the key's or a later one, else -inf.
torch::Tensor group_mask(const VarConfig& config, int64_t first_scale, int64_t last_scale,
                         const torch::TensorOptions& options) {
  const int64_t begin = config.scale_begin(first_scale), end = config.scale_end(last_scale);
  // CUDA's kernel wants rows that begin at multiples of 8 elements, and would copy others each
  // time.
  const int64_t row_length = (end + 7) / 8 * 8;
  auto padded_QM = torch::zeros({end - begin, row_length});
  for (int64_t k = first_scale; k < last_scale; ++k) {
    padded_QM.slice(0, config.scale_begin(k) - begin, config.scale_end(k) - begin)
        .slice(1, config.scale_end(k), end)
        .fill_(-std::numeric_limits<double>::infinity());
  }
  return padded_QM.to(options).slice(1, 0, end).unsqueeze(0).unsqueeze(0);
}

}  // namespace

std::vector<QueryGroup> query_groups(const VarConfig& config, int64_t last_scale,
                                     const torch::TensorOptions& options,
                                     int64_t max_masked_tokens) {
  std::vector<QueryGroup> groups;
  int64_t first = 0;
  while (first <= last_scale) {
    const int64_t begin = config.scale_begin(first);
    int64_t last = first;
    while (last < last_scale && config.scale_end(last + 1) - begin <= max_masked_tokens) ++last;
    groups.push_back({begin, config.scale_end(last), {}});
    if (last > first) groups.back().mask_11QM = group_mask(config, first, last, options);
    first = last + 1;
  }
  return groups;
}

AttentionImpl::AttentionImpl(const VarConfig& config, c10::Device device)
    : n_head_(config.heads()),
      use_l2_norm_(config.attn_l2_norm),
      // quirk: without unit vectors the scores are divided by 4 sqrt(D), not by sqrt(D).
      softmax_scale_(use_l2_norm_ ? 1 : 0.25 / std::sqrt(static_cast<double>(config.head_dim()))),
      dropout_p_(config.dropout_p),
      attn_dropout_p_(config.attn_dropout_p) {
  const int64_t width = config.width();
  if (use_l2_norm_) {
    scale_mul_1H11_ = register_parameter("scale_mul_1H11",
                                         torch::full({1, n_head_, 1, 1}, kInitialScale, device));
  }
  q_bias_ = register_parameter("q_bias", torch::zeros({width}, device));
  v_bias_ = register_parameter("v_bias", torch::zeros({width}, device));
  zero_k_bias_ = register_buffer("zero_k_bias", torch::zeros({width}, device));
  mat_qkv_ = register_module("mat_qkv", Linear(width, 3 * width, device, /*use_bias=*/false));
  proj_ = register_module("proj", Linear(width, width, device));
}

torch::Tensor AttentionImpl::forward(const torch::Tensor& x_BLC,
                                     const std::vector<QueryGroup>& groups) {
  const auto bias = torch::cat({q_bias_, zero_k_bias_, v_bias_});
  const auto qkv_BL3HD = nn::linear(x_BLC, mat_qkv_->weight, bias).unflatten(-1, {3, n_head_, -1});
  nn::Heads heads;
  if (use_l2_norm_) {
    heads = nn::unit_heads(qkv_BL3HD, scale_mul_1H11_.flatten().clamp_max(kMaxScale).exp());
  } else {
    const auto parts = qkv_BL3HD.unbind(2);
    heads = {parts[0], parts[1], parts[2]};
  }
  // The last group first: it sees all keys, and each group before it a part of those. Slices of
  // slices have gradients no longer than themselves.
  std::vector<torch::Tensor> mixed(groups.size());
  for (size_t i = groups.size(); i-- > 0;) {
    const QueryGroup& group = groups[i];
    for (torch::Tensor* tensor : {&heads.query_BLHD, &heads.key_BLHD, &heads.value_BLHD}) {
      if (tensor->size(1) > group.end) *tensor = tensor->slice(1, 0, group.end);
    }
    const auto query_BQHD =
        i == 0 ? heads.query_BLHD : heads.query_BLHD.slice(1, group.begin, group.end);
    const auto mixed_BHQD =
        nn::attention(query_BQHD.transpose(1, 2), heads.key_BLHD.transpose(1, 2),
                      heads.value_BLHD.transpose(1, 2),
                      {.mask = group.mask_11QM,
                       .dropout_p = is_training() ? attn_dropout_p_ : 0.0,
                       .scale = softmax_scale_});
    mixed[i] = mixed_BHQD.transpose(1, 2);
  }
  const auto out_BLC = proj_(torch::cat(mixed, 1).flatten(2));
  return nn::dropout(out_BLC, dropout_p_, is_training());
}

}  // namespace vgen::var
