#include "vgen/nn/group_norm.h"

namespace vgen::nn {

GroupNormImpl::GroupNormImpl(int64_t channels, int64_t groups, double eps)
    : groups_(groups), eps_(eps) {
  weight = register_parameter("weight", torch::ones({channels}));
  bias = register_parameter("bias", torch::zeros({channels}));
}

torch::Tensor GroupNormImpl::forward(const torch::Tensor& x_BCHW) {
  return at::group_norm(x_BCHW, groups_, weight, bias, eps_);
}

torch::Tensor GroupNormImpl::forward_silu(const torch::Tensor& x_BCHW) {
  return at::silu(forward(x_BCHW));
}

}  // namespace vgen::nn
