#include "vgen/nn/dropout.h"

#include <ATen/CPUGeneratorImpl.h>
#include <torch/torch.h>

#include <bit>
#include <mutex>

#include "vgen/kernels/dropout.h"

namespace vgen::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

uint64_t draw_key() {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard lock(generator.mutex());
  return at::check_generator<at::CPUGeneratorImpl>(generator)->random64();
}

class DropoutFunction : public torch::autograd::Function<DropoutFunction> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x, double p) {
    const uint64_t key = draw_key();
    context->saved_data["p"] = p;
    context->saved_data["key"] = std::bit_cast<int64_t>(key);
    return kernels::keyed_dropout(x, p, key);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    TORCH_INTERNAL_ASSERT(!torch::GradMode::is_enabled(), "dropout has no second derivative");
    const auto key = std::bit_cast<uint64_t>(context->saved_data["key"].toInt());
    return {kernels::keyed_dropout(gradients[0], context->saved_data["p"].toDouble(), key), {}};
  }
};

}  // namespace

at::Tensor dropout(const at::Tensor& x, double p, bool is_training) {
  if (!is_training || p <= 0) return x;
  if (p >= 1 || !kernels::is_dropout_input(x)) return torch::dropout(x, p, is_training);
  return DropoutFunction::apply(x, p);
}

}  // namespace vgen::nn
