#include "vgen/nn/batch_norm.h"

#include <algorithm>

namespace vgen::nn {

BatchNormImpl::BatchNormImpl(int64_t channels)
    : torch::nn::BatchNorm2dImpl(torch::nn::BatchNormOptions(channels)) {}

torch::Tensor BatchNormImpl::forward(const torch::Tensor& x_BCHW) {
  if (ranks_ == nullptr || !is_training()) return torch::nn::BatchNorm2dImpl::forward(x_BCHW);
  const torch::Tensor x = x_BCHW.to(torch::kFloat32);
  const auto own = at::var_mean(x, torch::IntArrayRef({0, 2, 3}), /*unbiased=*/false,
                                /*keepdim=*/false);
  // E x^2 - (E x)^2 needs float64, but only for C numbers: within a rank the variance is known.
  const torch::Tensor own_mean_C = std::get<1>(own).to(torch::kFloat64);
  const torch::Tensor own_square_C = std::get<0>(own).to(torch::kFloat64) + own_mean_C.square();
  const torch::Tensor moments_2C =
      mean_over_ranks(ranks_, torch::stack({own_mean_C, own_square_C}));
  const torch::Tensor mean_C = moments_2C[0];
  const torch::Tensor var_C = (moments_2C[1] - mean_C.square()).clamp_min(0);
  update_averages(mean_C, var_C, x.numel() / x.size(1) * ranks_->size());

  const auto per_channel = [](const torch::Tensor& t_C) {
    return t_C.to(torch::kFloat32).view({-1, 1, 1});
  };
  const torch::Tensor scale_C = weight * (var_C + options.eps()).rsqrt();
  return at::addcmul(per_channel(bias), x - per_channel(mean_C), per_channel(scale_C))
      .to(x_BCHW.scalar_type());
}

// As LibTorch does: the variance without bias, `count` being the values of a channel.
void BatchNormImpl::update_averages(const torch::Tensor& mean_C, const torch::Tensor& var_C,
                                    int64_t count) {
  const torch::NoGradGuard no_grad;
  const double momentum = options.momentum().value();
  const double unbiased =
      static_cast<double>(count) / static_cast<double>(std::max<int64_t>(1, count - 1));
  running_mean.mul_(1 - momentum).add_(mean_C.to(running_mean.scalar_type()), momentum);
  running_var.mul_(1 - momentum).add_(var_C.to(running_var.scalar_type()), momentum * unbiased);
  num_batches_tracked += 1;
}

}  // namespace vgen::nn
