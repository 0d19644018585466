#pragma once
// RMSNorm as LlamaGen computes it (arXiv:1910.07467 eq. 4; LlamaGen's gpt.py: RMSNorm).

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

namespace vgen::nn {

/// cast(x / sqrt(mean(x^2) + eps)) * weight, the mean over the last axis in float32.
/// quirk: the cast to the dtype of x comes before the multiplication by the weight.
/// x: (..., dim), floating; weight: (dim). In the dtype that a matrix product of the result takes:
/// autocast's, else that of x times the weight. Inputs of kernels/rms_norm.h take one pass each
/// way, and there is no second derivative then.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

/// The same with a weight of its own.
class RmsNormImpl : public torch::nn::Module {
 public:
  RmsNormImpl(int64_t dim, double eps);
  torch::Tensor forward(const torch::Tensor& x);

 private:
  double eps_;
  torch::Tensor weight_;  // registered as "weight", (dim)
};
TORCH_MODULE(RmsNorm);

}  // namespace vgen::nn
