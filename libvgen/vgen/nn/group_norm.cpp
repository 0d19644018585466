#include "vgen/nn/group_norm.h"

#include <ATen/autocast_mode.h>

#include "vgen/kernels/group_norm.h"

namespace vgen::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class GroupNormFunction : public torch::autograd::Function<GroupNormFunction> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x_BCHW,
                               const torch::Tensor& weight_C, const torch::Tensor& bias_C,
                               int64_t groups, double eps, bool has_silu) {
    const auto stats = kernels::group_norm_stats(x_BCHW, groups, eps);
    context->save_for_backward({x_BCHW, weight_C, bias_C, stats.mean_BG, stats.rstd_BG});
    context->saved_data["has_silu"] = has_silu;
    return kernels::group_norm_apply(x_BCHW, stats, {weight_C, bias_C, has_silu});
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    TORCH_INTERNAL_ASSERT(!torch::GradMode::is_enabled(), "group_norm has no second derivative");
    const variable_list saved = context->get_saved_variables();
    const torch::Tensor& x_BCHW = saved[0];
    const auto result = kernels::group_norm_gradient(
        x_BCHW, gradients[0].to(x_BCHW.scalar_type()).contiguous(torch::MemoryFormat::ChannelsLast),
        {saved[3], saved[4]}, {saved[1], saved[2], context->saved_data["has_silu"].toBool()});
    return {result.x_BCHW, result.weight_C, result.bias_C, {}, {}, {}};
  }
};

torch::Tensor normalise(GroupNormImpl& norm, const torch::Tensor& x_BCHW, bool has_silu) {
  if (!kernels::is_group_norm_input(x_BCHW)) {
    // LibTorch's norm on CUDA takes weights of the input's dtype alone; autocast sees to it itself.
    const bool has_any_weights =
        x_BCHW.is_cpu() || at::autocast::is_autocast_enabled(x_BCHW.device().type());
    const auto dtype = has_any_weights ? norm.weight.scalar_type() : x_BCHW.scalar_type();
    const torch::Tensor y_BCHW = at::group_norm(x_BCHW, norm.groups(), norm.weight.to(dtype),
                                                norm.bias.to(dtype), norm.eps());
    return has_silu ? at::silu(y_BCHW) : y_BCHW;
  }
  if (torch::GradMode::is_enabled()) {
    return GroupNormFunction::apply(x_BCHW, norm.weight, norm.bias, norm.groups(), norm.eps(),
                                    has_silu);
  }
  return kernels::group_norm_apply(x_BCHW,
                                   kernels::group_norm_stats(x_BCHW, norm.groups(), norm.eps()),
                                   {norm.weight, norm.bias, has_silu});
}

}  // namespace

GroupNormImpl::GroupNormImpl(int64_t channels, int64_t groups, double eps)
    : groups_(groups), eps_(eps) {
  weight = register_parameter("weight", torch::ones({channels}));
  bias = register_parameter("bias", torch::zeros({channels}));
}

torch::Tensor GroupNormImpl::forward(const torch::Tensor& x_BCHW) {
  return normalise(*this, x_BCHW, /*has_silu=*/false);
}

torch::Tensor GroupNormImpl::forward_silu(const torch::Tensor& x_BCHW) {
  return normalise(*this, x_BCHW, /*has_silu=*/true);
}

}  // namespace vgen::nn
