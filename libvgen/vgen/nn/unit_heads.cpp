#include "vgen/nn/unit_heads.h"

#include <torch/torch.h>

#include "vgen/kernels/unit_heads.h"

namespace vgen::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class UnitHeadsFunction : public torch::autograd::Function<UnitHeadsFunction> {
 public:
  static variable_list forward(AutogradContext* context, const torch::Tensor& qkv_BL3HD,
                               const torch::Tensor& scale_H) {
    const auto result = kernels::unit_heads(qkv_BL3HD, scale_H);
    context->save_for_backward({qkv_BL3HD, scale_H, result.rnorm_N2H});
    return {result.query_BLHD, result.key_BLHD, result.value_BLHD};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    TORCH_INTERNAL_ASSERT(!torch::GradMode::is_enabled(), "unit_heads has no second derivative");
    const variable_list saved = context->get_saved_variables();
    const auto result = kernels::unit_heads_gradient(saved[0], saved[1], saved[2], gradients[0],
                                                     gradients[1], gradients[2]);
    return {result.qkv_BL3HD, result.scale_H.to(saved[1].scalar_type())};
  }
};

torch::Tensor unit(const torch::Tensor& x) {
  namespace F = torch::nn::functional;
  return F::normalize(x.to(torch::kFloat32), F::NormalizeFuncOptions().dim(-1).eps(1e-12));
}

}  // namespace

Heads unit_heads(const at::Tensor& qkv_BL3HD, const at::Tensor& scale_H) {
  if (kernels::is_unit_heads_input(qkv_BL3HD)) {
    const variable_list heads = UnitHeadsFunction::apply(qkv_BL3HD, scale_H);
    return {heads[0], heads[1], heads[2]};
  }
  const auto parts = qkv_BL3HD.unbind(2);
  const auto dtype = qkv_BL3HD.scalar_type();
  return {(unit(parts[0]) * scale_H.unsqueeze(1)).to(dtype), unit(parts[1]).to(dtype), parts[2]};
}

}  // namespace vgen::nn
