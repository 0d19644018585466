#include "vgen/tokenizer/quantizer.h"

#include <algorithm>

#include "vgen/core/error.h"
#include "vgen/kernels/nearest_code.h"

namespace vgen::tokenizer {
namespace {

constexpr int64_t kUsageWindow = 65536;
constexpr double kEntropyTemperature = 0.01;

torch::Tensor l2_normalise(const torch::Tensor& rows) {
  return torch::nn::functional::normalize(
      rows, torch::nn::functional::NormalizeFuncOptions().p(2).dim(-1));
}

}  // namespace

VectorQuantizerImpl::VectorQuantizerImpl(const QuantizerConfig& config) : config_(config) {
  const double bound = 1.0 / static_cast<double>(config.codebook_size);
  torch::Tensor codes_VD =
      torch::empty({config.codebook_size, config.codebook_embed_dim}).uniform_(-bound, bound);
  if (config.codebook_l2_norm) codes_VD = l2_normalise(codes_VD);
  embedding_ = register_module(
      "embedding", torch::nn::Embedding(
                       torch::nn::EmbeddingOptions(config.codebook_size, config.codebook_embed_dim)
                           ._weight(codes_VD)));
  if (config.codebook_show_usage) {
    codebook_used_ = register_buffer("codebook_used", torch::zeros({kUsageWindow}));
  }
}

torch::Tensor VectorQuantizerImpl::codebook_VD() const {
  return config_.codebook_l2_norm ? l2_normalise(embedding_->weight) : embedding_->weight;
}

Quantized VectorQuantizerImpl::forward(const torch::Tensor& z_BDhw) {
  const int64_t batch = z_BDhw.size(0), height = z_BDhw.size(2), width = z_BDhw.size(3);
  torch::Tensor z_ND =
      z_BDhw.to(torch::kFloat32).permute({0, 2, 3, 1}).reshape({-1, config_.codebook_embed_dim});
  if (config_.codebook_l2_norm) z_ND = l2_normalise(z_ND);
  const torch::Tensor codes_VD = codebook_VD();

  Quantized result;
  result.index_N = kernels::nearest_code(z_ND.detach(), codes_VD.detach());
  const torch::Tensor code_ND = codes_VD.index_select(0, result.index_N);
  if (is_training()) {
    result.losses.vq_loss = torch::mse_loss(code_ND, z_ND.detach());
    result.losses.commit_loss = config_.commit_loss_beta * torch::mse_loss(z_ND, code_ND.detach());
    result.losses.entropy_loss = torch::zeros({}, z_ND.options());
    if (config_.entropy_loss_ratio != 0) {
      const torch::Tensor distance_NV =
          z_ND.square().sum(1, true) + codes_VD.square().sum(1) - 2 * z_ND.matmul(codes_VD.t());
      result.losses.entropy_loss = config_.entropy_loss_ratio * entropy_loss(distance_NV, ranks_);
    }
    result.losses.codebook_usage = update_usage(result.index_N, batch);
  }
  const torch::Tensor out_ND = z_ND + (code_ND - z_ND).detach();
  result.quant_BDhw =
      out_ND.view({batch, height, width, config_.codebook_embed_dim}).permute({0, 3, 1, 2});
  return result;
}

torch::Tensor VectorQuantizerImpl::update_usage(const torch::Tensor& index_N, int64_t batch) {
  const torch::NoGradGuard no_grad;
  if (!codebook_used_.defined()) return torch::zeros({}, index_N.options().dtype(torch::kFloat32));
  const int64_t count = index_N.size(0);
  require(count <= kUsageWindow, ErrorCode::kInvalidArgument, "quantizer: ", count,
          " codes in one batch, but codebook_show_usage counts at most ", kUsageWindow,
          "; use a smaller batch or image, or turn codebook_show_usage off");
  torch::Tensor latest_N = nn::whole_batch(ranks_, index_N.view({batch, -1})).flatten();
  // What all ranks have together may be more than the window holds.
  latest_N = latest_N.slice(0, std::max<int64_t>(0, latest_N.size(0) - kUsageWindow));
  codebook_used_.copy_(
      torch::cat({codebook_used_.slice(0, latest_N.size(0)), latest_N.to(torch::kFloat32)}));
  torch::Tensor seen_V = torch::zeros({config_.codebook_size}, codebook_used_.options());
  seen_V.index_fill_(0, codebook_used_.to(torch::kLong), 1);
  return seen_V.mean();
}

torch::Tensor VectorQuantizerImpl::get_codebook_entry(const torch::Tensor& index, int64_t batch,
                                                      int64_t height, int64_t width) {
  require(index.numel() == batch * height * width, ErrorCode::kInvalidArgument,
          "quantizer: ", index.numel(), " codes given for ", batch, " latents of ", height, " x ",
          width);
  const torch::Tensor index_N = index.reshape({-1}).to(torch::kLong);
  const int64_t low = index_N.numel() == 0 ? 0 : index_N.min().item<int64_t>();
  const int64_t high = index_N.numel() == 0 ? 0 : index_N.max().item<int64_t>();
  require(low >= 0 && high < config_.codebook_size, ErrorCode::kInvalidArgument, "quantizer: code ",
          low < 0 ? low : high, " is outside the codebook of ", config_.codebook_size, " codes");
  return codebook_VD()
      .index_select(0, index_N)
      .view({batch, height, width, config_.codebook_embed_dim})
      .permute({0, 3, 1, 2});
}

torch::Tensor entropy_loss(const torch::Tensor& distance_NV, nn::BatchRanks* ranks) {
  const torch::Tensor affinity_NV = -distance_NV / kEntropyTemperature;
  const torch::Tensor p_NV = affinity_NV.softmax(-1);
  const torch::Tensor log_p_NV = (affinity_NV + 1e-5).log_softmax(-1);
  const torch::Tensor mean_p_V = nn::mean_over_ranks(ranks, p_NV.mean(0));
  const torch::Tensor row_entropy = -(p_NV * log_p_NV).sum(-1).mean();
  return row_entropy + (mean_p_V * (mean_p_V + 1e-5).log()).sum();
}

}  // namespace vgen::tokenizer
