#include "vgen/nn/rms_norm.h"

namespace vgen::nn {

RmsNormImpl::RmsNormImpl(int64_t dim, double eps) : eps_(eps) {
  weight_ = register_parameter("weight", torch::ones({dim}));
}

torch::Tensor RmsNormImpl::forward(const torch::Tensor& x) {
  const auto wide = x.to(torch::kFloat32);
  const auto scale = (wide.square().mean(-1, /*keepdim=*/true) + eps_).rsqrt();
  return (wide * scale).to(x.scalar_type()) * weight_;
}

}  // namespace vgen::nn
