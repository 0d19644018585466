#pragma once
// RMSNorm as LlamaGen computes it (arXiv:1910.07467 eq. 4; LlamaGen's gpt.py: RMSNorm).

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

namespace vgen::nn {

/// y = cast(x / sqrt(mean(x^2) + eps)) * weight, the mean over the last axis in float32.
/// quirk: the cast to the dtype of x comes before the multiplication by the weight.
class RmsNormImpl : public torch::nn::Module {
 public:
  RmsNormImpl(int64_t dim, double eps);
  /// x: (..., dim), floating. Returns the same shape; the dtype is that of x times the weight.
  torch::Tensor forward(const torch::Tensor& x);

 private:
  double eps_;
  torch::Tensor weight_;  // registered as "weight", (dim)
};
TORCH_MODULE(RmsNorm);

}  // namespace vgen::nn
