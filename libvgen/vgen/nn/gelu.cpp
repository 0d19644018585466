#include "vgen/nn/gelu.h"

#include <torch/torch.h>

#include "vgen/kernels/gelu.h"

namespace vgen::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class GeluFunction : public torch::autograd::Function<GeluFunction> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x) {
    context->save_for_backward({x});
    return kernels::gelu(x);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    TORCH_INTERNAL_ASSERT(!torch::GradMode::is_enabled(), "gelu has no second derivative");
    return {kernels::gelu_gradient(context->get_saved_variables()[0], gradients[0])};
  }
};

}  // namespace

at::Tensor gelu(const at::Tensor& x) {
  return kernels::is_gelu_input(x) ? GeluFunction::apply(x) : at::gelu(x, "tanh");
}

}  // namespace vgen::nn
