#include "vgen/tokenizer/multi_scale_quantizer.h"

#include <algorithm>
#include <cmath>

#include "vgen/core/error.h"
#include "vgen/core/strings.h"
#include "vgen/kernels/nearest_code.h"

namespace vgen::tokenizer {
namespace {

/// Below it phi is the identity and has no parameters.
constexpr double kLeastRatio = 1e-6;

/// Places of `num_phi` phi in [0, 1]. The order of the operations is the official code's: where a
/// scale lies between two ticks, rounding decides.
std::vector<double> places_of_phi(int64_t num_phi) {
  const auto count = static_cast<double>(num_phi);
  const double first = num_phi == 4 ? 1.0 / 3 / count : 1.0 / 2 / count;
  const double last = 1 - first;
  const double gap = (last - first) / (count - 1);
  std::vector<double> ticks;
  for (int64_t i = 0; i < num_phi; ++i) {
    // volatile: product and sum are rounded one by one, never fused
    const volatile double offset = static_cast<double>(i) * gap;
    ticks.push_back(offset + first);
  }
  ticks.back() = last;
  return ticks;
}

}  // namespace

int64_t num_tokens(const std::vector<int64_t>& patch_nums) {
  int64_t count = 0;
  for (const int64_t p : patch_nums) count += p * p;
  return count;
}

void validate_patch_nums(const std::vector<int64_t>& patch_nums, const char* name) {
  require(!patch_nums.empty(), ErrorCode::kInvalidArgument, name,
          " is empty, expected the side of each scale");
  int64_t before = 0;
  for (const int64_t p : patch_nums) {
    require(p > before, ErrorCode::kInvalidArgument, name, " is ", format_shape(patch_nums),
            ", expected sides that grow from at least 1");
    before = p;
  }
}

std::vector<int64_t> phi_of_scales(int64_t num_scales, int64_t num_phi) {
  TORCH_INTERNAL_ASSERT(num_scales >= 1 && num_phi >= 1);
  if (num_phi == 4 && num_scales == 10) return {0, 0, 1, 1, 1, 2, 2, 3, 3, 3};
  if (num_phi == 4 && num_scales == 14) return {0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3};
  std::vector<int64_t> phi(static_cast<size_t>(num_scales), 0);
  if (num_phi == 1 || num_scales == 1) return phi;
  const std::vector<double> ticks = places_of_phi(num_phi);
  for (int64_t k = 0; k < num_scales; ++k) {
    const double place = static_cast<double>(k) / static_cast<double>(num_scales - 1);
    const auto nearest = std::ranges::min_element(
        ticks, {}, [place](double tick) { return std::abs(tick - place); });
    phi[static_cast<size_t>(k)] = nearest - ticks.begin();
  }
  return phi;
}

PhiImpl::PhiImpl(int64_t channels, double ratio)
    : nn::Conv2dImpl(nn::conv3x3(channels, channels)), ratio_(ratio) {}

torch::Tensor PhiImpl::forward(const torch::Tensor& x_BZhw) {
  return at::add(x_BZhw * (1 - ratio_), nn::Conv2dImpl::forward(x_BZhw), ratio_);
}

MultiScaleQuantizerImpl::MultiScaleQuantizerImpl(const MultiScaleQuantizerConfig& config)
    : config_(config) {
  validate_patch_nums(config.patch_nums, "patch_nums");
  const auto num_scales = static_cast<int64_t>(config.patch_nums.size());
  ema_vocab_hit_KV_ =
      register_buffer("ema_vocab_hit_SV", torch::zeros({num_scales, config.codebook_size}));
  phi_of_scale_ = phi_of_scales(num_scales, num_phi());
  register_phi();
  const double bound = 1.0 / static_cast<double>(config.codebook_size);
  embedding_ = register_module(
      "embedding",
      torch::nn::Embedding(torch::nn::EmbeddingOptions(config.codebook_size, config.z_channels)
                               ._weight(torch::empty({config.codebook_size, config.z_channels})
                                            .uniform_(-bound, bound))));
}

int64_t MultiScaleQuantizerImpl::num_phi() const {
  return config_.share_quant_resi > 0 ? config_.share_quant_resi
                                      : static_cast<int64_t>(config_.patch_nums.size());
}

void MultiScaleQuantizerImpl::register_phi() {
  const double ratio = std::abs(config_.quant_resi);
  if (ratio <= kLeastRatio) return;
  torch::nn::ModuleList list;
  for (int64_t i = 0; i < num_phi(); ++i) {
    phi_.emplace_back(config_.z_channels, ratio);
    list->push_back(phi_.back());
  }
  if (config_.share_quant_resi == 0) {
    register_module("quant_resi", list);
    return;
  }
  const auto shared = std::make_shared<torch::nn::Module>("SharedPhi");
  register_module("quant_resi", shared);
  if (config_.share_quant_resi == 1) {
    shared->register_module("qresi", phi_[0]);
  } else {
    shared->register_module("qresi_ls", list);
  }
}

void MultiScaleQuantizerImpl::check_latent(const torch::Tensor& f_BZhw, int64_t side) const {
  require(f_BZhw.dim() == 4 && f_BZhw.size(1) == config_.z_channels && f_BZhw.size(2) == side &&
              f_BZhw.size(3) == side && f_BZhw.is_floating_point(),
          ErrorCode::kInvalidArgument, "quantizer: expected floating latents (B, ",
          config_.z_channels, ", ", side, ", ", side, ") for a last scale of ", side, ", got ",
          torch::toString(f_BZhw.scalar_type()), " ", format_shape(f_BZhw.sizes().vec()));
}

void MultiScaleQuantizerImpl::check_count(const torch::Tensor& index_BL) const {
  const int64_t expected = num_tokens(config_.patch_nums);
  require(index_BL.dim() == 2 && index_BL.size(1) == expected && !index_BL.is_floating_point() &&
              index_BL.scalar_type() != torch::kBool,
          ErrorCode::kInvalidArgument, "quantizer: expected codes (B, ", expected,
          ") of the scales ", format_shape(config_.patch_nums), ", got ",
          torch::toString(index_BL.scalar_type()), " ", format_shape(index_BL.sizes().vec()));
}

torch::Tensor MultiScaleQuantizerImpl::lookup(const torch::Tensor& index) const {
  std::vector<int64_t> shape = index.sizes().vec();
  shape.push_back(config_.z_channels);
  return codebook_VZ().index_select(0, index.reshape({-1})).view(shape);
}

torch::Tensor MultiScaleQuantizerImpl::vectors(const torch::Tensor& index_N, int64_t batch,
                                               int64_t p) const {
  return lookup(index_N.view({batch, p, p})).permute({0, 3, 1, 2});  // (B, Z, p, p)
}

torch::Tensor MultiScaleQuantizerImpl::apply_phi(int64_t phi, const torch::Tensor& h_BZpp,
                                                 int64_t side) {
  torch::Tensor h_BZhw = h_BZpp;
  if (h_BZpp.size(2) != side) h_BZhw = enlarged(h_BZpp, side);
  return phi_.empty() ? h_BZhw : phi_[static_cast<size_t>(phi)](h_BZhw);
}

torch::Tensor MultiScaleQuantizerImpl::enlarged(const torch::Tensor& h_BZpp, int64_t side) {
  if (!h_BZpp.is_cuda())
    return at::upsample_bicubic2d(h_BZpp, {side, side}, /*align_corners=*/false);
  const int64_t p = h_BZpp.size(2);
  torch::Tensor& weight_SP = enlarging_[p];
  if (!weight_SP.defined() || weight_SP.device() != h_BZpp.device() || weight_SP.size(0) != side) {
    // A column of p cells, one of them 1, for each cell.
    const auto cells = torch::eye(p, torch::kFloat64).view({1, p, p, 1});
    weight_SP = at::upsample_bicubic2d(cells, {side, 1}, /*align_corners=*/false)
                    .view({p, side})
                    .t()
                    .to(h_BZpp.device());
  }
  // float64: neither TF32 nor autocast rounds it.
  return weight_SP.matmul(h_BZpp.to(torch::kFloat64).matmul(weight_SP.t()))
      .to(h_BZpp.scalar_type());
}

torch::Tensor MultiScaleQuantizerImpl::contribution(int64_t scale, const torch::Tensor& h_BZpp) {
  return apply_phi(phi_of_scale_.at(static_cast<size_t>(scale)), h_BZpp, patch_nums().back());
}

torch::Tensor MultiScaleQuantizerImpl::area_rows(const torch::Tensor& x_BZhw, int64_t p) {
  const torch::Tensor cells_BZpp =
      p == x_BZhw.size(2) ? x_BZhw : at::adaptive_avg_pool2d(x_BZhw, {p, p});
  return cells_BZpp.permute({0, 2, 3, 1}).reshape({-1, x_BZhw.size(1)});
}

MultiScaleQuantizerImpl::Output MultiScaleQuantizerImpl::forward_until(
    const torch::Tensor& f_BZhw, const torch::Tensor& last_scale_B) {
  check_latent(f_BZhw, patch_nums().back());
  const torch::Tensor f = f_BZhw.to(torch::kFloat32), fixed_f = f.detach();
  const int64_t batch = f.size(0);
  torch::Tensor rest = fixed_f, fhat = torch::zeros_like(fixed_f);
  std::vector<torch::Tensor> indices, hits, errors, losses;
  for (size_t k = 0; k < patch_nums().size(); ++k) {
    const int64_t p = patch_nums()[k], scale = static_cast<int64_t>(k);
    const torch::Tensor index_N = kernels::nearest_code(area_rows(rest, p), codebook_VZ().detach());
    torch::Tensor h = contribution(scale, vectors(index_N, batch, p));
    torch::Tensor count_N = torch::ones({index_N.size(0)}, fixed_f.options());
    if (last_scale_B.defined()) {
      const torch::Tensor is_open_B = last_scale_B.ge(scale).to(torch::kFloat32);
      h = h * is_open_B.view({batch, 1, 1, 1});
      count_N = is_open_B.view({batch, 1}).expand({batch, p * p}).reshape({-1});
    }
    fhat = fhat + h;
    rest = rest - h.detach();
    errors.push_back(torch::mse_loss(fhat.detach(), fixed_f));
    if (is_training()) {
      losses.push_back(config_.commit_loss_beta * torch::mse_loss(fhat.detach(), f) +
                       torch::mse_loss(fhat, fixed_f));
    }
    indices.push_back(index_N.view({batch, p * p}));
    hits.push_back(
        torch::zeros({config_.codebook_size}, fixed_f.options()).index_add_(0, index_N, count_N));
  }
  Output output;
  output.quant_BZhw = (fhat.detach() - fixed_f) + f;
  output.index_BL = torch::cat(indices, 1);
  output.hits_KV = torch::stack(hits);
  output.error_K = torch::stack(errors);
  output.power = fixed_f.square().mean();
  if (is_training()) {
    output.loss = torch::stack(losses).mean();
    add_other_ranks(output);
    record_hits(output.hits_KV);
  }
  return output;
}

void MultiScaleQuantizerImpl::add_other_ranks(Output& output) const {
  if (ranks_ == nullptr) return;
  const torch::NoGradGuard no_grad;
  const torch::Tensor sums =
      torch::cat({output.hits_KV.flatten(), output.error_K, output.power.reshape({1})});
  ranks_->sum(sums);
  const auto parts =
      sums.split_with_sizes({output.hits_KV.numel(), output.error_K.numel(), int64_t{1}});
  output.hits_KV = parts[0].view_as(output.hits_KV);
  output.error_K = parts[1] / ranks_->size();
  output.power = parts[2][0] / ranks_->size();
}

void MultiScaleQuantizerImpl::record_hits(const torch::Tensor& hits_KV) {
  const torch::NoGradGuard no_grad;
  for (int64_t k = 0; k < hits_KV.size(0); ++k) {
    torch::Tensor average_V = ema_vocab_hit_KV_[k];
    const double kept = hits_recorded_ == 0 ? 0 : hits_recorded_ < 100 ? 0.9 : 0.99;
    average_V.mul_(kept).add_(hits_KV[k], 1 - kept);
    ++hits_recorded_;
  }
}

torch::Tensor MultiScaleQuantizerImpl::encode(const torch::Tensor& f_BZhw) {
  return encode(f_BZhw, patch_nums());
}

torch::Tensor MultiScaleQuantizerImpl::encode(const torch::Tensor& f_BZhw,
                                              const std::vector<int64_t>& patch_nums) {
  validate_patch_nums(patch_nums, "patch_nums");
  check_latent(f_BZhw, patch_nums.back());
  const torch::NoGradGuard no_grad;
  const int64_t batch = f_BZhw.size(0), side = patch_nums.back();
  const auto phi = phi_of_scales(static_cast<int64_t>(patch_nums.size()), num_phi());
  torch::Tensor rest = f_BZhw.to(torch::kFloat32);
  std::vector<torch::Tensor> indices;
  for (size_t k = 0; k < patch_nums.size(); ++k) {
    const int64_t p = patch_nums[k];
    const torch::Tensor index_N = kernels::nearest_code(area_rows(rest, p), codebook_VZ().detach());
    indices.push_back(index_N.view({batch, p * p}));
    if (p != side) rest = rest - apply_phi(phi[k], vectors(index_N, batch, p), side);
  }
  return torch::cat(indices, 1);
}

std::vector<torch::Tensor> MultiScaleQuantizerImpl::latents(const torch::Tensor& index_BL) {
  check_count(index_BL);
  const torch::NoGradGuard no_grad;
  if (index_BL.numel() > 0) {
    const auto low = index_BL.min().item<int64_t>(), high = index_BL.max().item<int64_t>();
    require(low >= 0 && high < config_.codebook_size, ErrorCode::kInvalidArgument,
            "quantizer: code ", low < 0 ? low : high, " is outside the codebook of ",
            config_.codebook_size, " codes");
  }
  const torch::Tensor codes_BL = index_BL.to(codebook_VZ().device(), torch::kLong);
  const int64_t batch = codes_BL.size(0), side = patch_nums().back();
  torch::Tensor fhat = torch::zeros({batch, config_.z_channels, side, side},
                                    codebook_VZ().options().requires_grad(false));
  std::vector<torch::Tensor> latents;
  int64_t begin = 0;
  for (size_t k = 0; k < patch_nums().size(); ++k) {
    const int64_t p = patch_nums()[k];
    const torch::Tensor index_N = codes_BL.slice(1, begin, begin + p * p).reshape({-1});
    add_scale(static_cast<int64_t>(k), vectors(index_N, batch, p), fhat);
    latents.push_back(fhat.clone());
    begin += p * p;
  }
  return latents;
}

torch::Tensor MultiScaleQuantizerImpl::latent(const torch::Tensor& index_BL) {
  return latents(index_BL).back();
}

torch::Tensor MultiScaleQuantizerImpl::teacher_input(const torch::Tensor& index_BL) {
  check_count(index_BL);
  const torch::NoGradGuard no_grad;
  const torch::Tensor codes_BL = index_BL.to(codebook_VZ().device(), torch::kLong);
  const int64_t batch = codes_BL.size(0), side = patch_nums().back();
  torch::Tensor fhat = torch::zeros({batch, config_.z_channels, side, side},
                                    codebook_VZ().options().requires_grad(false));
  std::vector<torch::Tensor> rows;
  int64_t begin = 0;
  for (size_t k = 0; k + 1 < patch_nums().size(); ++k) {
    const int64_t p = patch_nums()[k], scale = static_cast<int64_t>(k);
    const torch::Tensor index_N = codes_BL.slice(1, begin, begin + p * p).reshape({-1});
    add_scale(scale, vectors(index_N, batch, p), fhat);
    rows.push_back(next_input(scale + 1, fhat));
    begin += p * p;
  }
  if (rows.empty()) return torch::zeros({batch, 0, config_.z_channels}, fhat.options());
  return torch::cat(rows, 1);
}

void MultiScaleQuantizerImpl::add_scale(int64_t scale, const torch::Tensor& h_BZpp,
                                        torch::Tensor& fhat_BZhw) {
  const torch::NoGradGuard no_grad;
  TORCH_INTERNAL_ASSERT(h_BZpp.dim() == 4 &&
                        h_BZpp.size(2) == patch_nums().at(static_cast<size_t>(scale)));
  fhat_BZhw.add_(contribution(scale, h_BZpp.to(torch::kFloat32)));
}

torch::Tensor MultiScaleQuantizerImpl::next_input(int64_t next_scale,
                                                  const torch::Tensor& fhat_BZhw) {
  const torch::NoGradGuard no_grad;
  const int64_t p = patch_nums().at(static_cast<size_t>(next_scale));
  return area_rows(fhat_BZhw, p).view({fhat_BZhw.size(0), p * p, config_.z_channels});
}

}  // namespace vgen::tokenizer
