#include "vgen/nn/rms_norm.h"

#include <torch/torch.h>

#include "vgen/kernels/rms_norm.h"
#include "vgen/tensor/autocast.h"

namespace vgen::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class RmsNormFunction : public torch::autograd::Function<RmsNormFunction> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x,
                               const torch::Tensor& weight_C, double eps, int64_t dtype) {
    auto result = kernels::rms_norm(x, weight_C, eps, static_cast<c10::ScalarType>(dtype));
    context->save_for_backward({x, weight_C, result.rstd_N});
    return result.y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    TORCH_INTERNAL_ASSERT(!torch::GradMode::is_enabled(), "rms_norm has no second derivative");
    const variable_list saved = context->get_saved_variables();
    const auto result = kernels::rms_norm_gradient(saved[0], saved[1], saved[2], gradients[0]);
    return {result.x, result.weight_C, {}, {}};
  }
};

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const c10::ScalarType dtype = autocast_dtype(x.device(), at::result_type(x, weight));
  const bool has_dtype = dtype == torch::kFloat32 || dtype == torch::kBFloat16 || x.is_cuda();
  if (has_dtype && kernels::is_rms_norm_input(x, weight)) {
    return RmsNormFunction::apply(x, weight, eps, static_cast<int64_t>(dtype));
  }
  const auto wide = x.to(torch::kFloat32);
  const auto scale = (wide.square().mean(-1, /*keepdim=*/true) + eps).rsqrt();
  return ((wide * scale).to(x.scalar_type()) * weight).to(dtype);
}

RmsNormImpl::RmsNormImpl(int64_t dim, double eps) : eps_(eps) {
  weight_ = register_parameter("weight", torch::ones({dim}));
}

torch::Tensor RmsNormImpl::forward(const torch::Tensor& x) { return rms_norm(x, weight_, eps_); }

}  // namespace vgen::nn
