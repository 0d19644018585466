#include "vgen/nn/swiglu.h"

#include <torch/torch.h>

#include "vgen/kernels/swiglu.h"

namespace vgen::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class SwigluFunction : public torch::autograd::Function<SwigluFunction> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& a,
                               const torch::Tensor& b) {
    context->save_for_backward({a, b});
    return kernels::swiglu(a, b);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    TORCH_INTERNAL_ASSERT(!torch::GradMode::is_enabled(), "swiglu has no second derivative");
    const variable_list saved = context->get_saved_variables();
    const auto result = kernels::swiglu_gradient(saved[0], saved[1], gradients[0]);
    return {result.a, result.b};
  }
};

}  // namespace

at::Tensor swiglu(const at::Tensor& a, const at::Tensor& b) {
  if (kernels::is_swiglu_input(a, b)) return SwigluFunction::apply(a, b);
  return at::silu(a) * b;
}

}  // namespace vgen::nn
