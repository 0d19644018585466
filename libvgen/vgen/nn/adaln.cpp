#include "vgen/nn/adaln.h"

#include <torch/torch.h>

#include "vgen/kernels/adaln.h"
#include "vgen/tensor/autocast.h"

namespace vgen::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Whether there is a pass to and from that dtype.
bool has_dtype(c10::Device device, c10::ScalarType dtype) {
  return dtype == torch::kFloat32 || dtype == torch::kBFloat16 ||
         (dtype == torch::kFloat16 && device.is_cuda());
}

/// Whether one pass serves: factors of every sample of x.
bool has_pass(const torch::Tensor& x_BLC, const torch::Tensor& factor_B1C) {
  return kernels::is_adaln_input(x_BLC) && factor_B1C.device() == x_BLC.device() &&
         factor_B1C.dim() == 3 && factor_B1C.size(0) == x_BLC.size(0) && factor_B1C.size(1) == 1 &&
         factor_B1C.size(2) == x_BLC.size(2) && has_dtype(x_BLC.device(), factor_B1C.scalar_type());
}

/// (B, C), as kernels/adaln.h wants them.
torch::Tensor factors(const torch::Tensor& factor_B1C) {
  const auto factor_BC = factor_B1C.squeeze(1);
  return factor_BC.is_cuda() ? factor_BC : factor_BC.to(torch::kFloat32).contiguous();
}

torch::Tensor like(const torch::Tensor& gradient_BC, const torch::Tensor& factor_B1C) {
  return gradient_BC.unsqueeze(1).to(factor_B1C.scalar_type());
}

class ModulatedNormFunction : public torch::autograd::Function<ModulatedNormFunction> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x_BLC,
                               const torch::Tensor& scale_B1C, const torch::Tensor& shift_B1C,
                               double eps, int64_t dtype) {
    const auto result = kernels::modulated_norm(x_BLC, factors(scale_B1C), factors(shift_B1C), eps,
                                                static_cast<c10::ScalarType>(dtype));
    context->save_for_backward({x_BLC, scale_B1C, result.mean_N, result.rstd_N});
    context->saved_data["shift_dtype"] = static_cast<int64_t>(shift_B1C.scalar_type());
    return result.y_BLC;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    TORCH_INTERNAL_ASSERT(!torch::GradMode::is_enabled(),
                          "modulated_norm has no second derivative");
    const variable_list saved = context->get_saved_variables();
    const auto result = kernels::modulated_norm_gradient(saved[0], factors(saved[1]), saved[2],
                                                         saved[3], gradients[0]);
    const auto shift_dtype =
        static_cast<c10::ScalarType>(context->saved_data["shift_dtype"].toInt());
    return {result.x_BLC,
            like(result.scale_BC, saved[1]),
            result.shift_BC.unsqueeze(1).to(shift_dtype),
            {},
            {}};
  }
};

class GatedSumFunction : public torch::autograd::Function<GatedSumFunction> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x_BLC,
                               const torch::Tensor& branch_BLC, const torch::Tensor& gate_B1C) {
    context->save_for_backward({branch_BLC, gate_B1C});
    return kernels::gated_sum(x_BLC, branch_BLC, factors(gate_B1C));
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    TORCH_INTERNAL_ASSERT(!torch::GradMode::is_enabled(), "gated_sum has no second derivative");
    const variable_list saved = context->get_saved_variables();
    const auto result = kernels::gated_sum_gradient(saved[0], factors(saved[1]), gradients[0]);
    return {gradients[0], result.branch_BLC, like(result.gate_BC, saved[1])};
  }
};

}  // namespace

at::Tensor modulated_norm(const at::Tensor& x_BLC, const at::Tensor& scale_B1C,
                          const at::Tensor& shift_B1C, double eps) {
  const c10::ScalarType dtype = autocast_dtype(x_BLC.device(), x_BLC.scalar_type());
  if (has_pass(x_BLC, scale_B1C) && has_pass(x_BLC, shift_B1C) &&
      has_dtype(x_BLC.device(), dtype)) {
    return ModulatedNormFunction::apply(x_BLC, scale_B1C, shift_B1C, eps,
                                        static_cast<int64_t>(dtype));
  }
  const auto normed_BLC = torch::layer_norm(x_BLC, {x_BLC.size(2)}, {}, {}, eps);
  return (normed_BLC * (1 + scale_B1C) + shift_B1C).to(dtype);
}

at::Tensor gated_sum(const at::Tensor& x_BLC, const at::Tensor& branch_BLC,
                     const at::Tensor& gate_B1C) {
  if (has_pass(x_BLC, gate_B1C) && has_pass(branch_BLC, gate_B1C)) {
    return GatedSumFunction::apply(x_BLC, branch_BLC, gate_B1C);
  }
  return x_BLC + (branch_BLC * gate_B1C).to(x_BLC.scalar_type());
}

}  // namespace vgen::nn
