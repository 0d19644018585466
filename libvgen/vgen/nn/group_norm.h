#pragma once
// Group normalisation with an optional SiLU behind it. B batch, C channels, H height, W width.

#include <torch/torch.h>

namespace vgen::nn {

/// GroupNorm (arXiv:1803.08494) with the settings of the VQGAN family: 32 groups, eps 1e-6, affine
/// parameters `weight` (C) = 1 and `bias` (C) = 0, float32.
class GroupNormImpl : public torch::nn::Module {
 public:
  explicit GroupNormImpl(int64_t channels, int64_t groups = 32, double eps = 1e-6);
  /// Statistics in float32, the result in the dtype and memory format of x_BCHW. On CUDA weights
  /// are rounded to that dtype where x is not channels-last.
  torch::Tensor forward(const torch::Tensor& x_BCHW);
  /// silu(forward(x)) in one pass, rounded once (channels-last; else two operators).
  torch::Tensor forward_silu(const torch::Tensor& x_BCHW);

  int64_t groups() const { return groups_; }
  double eps() const { return eps_; }
  torch::Tensor weight, bias;

 private:
  int64_t groups_;
  double eps_;
};
TORCH_MODULE(GroupNorm);

}  // namespace vgen::nn
