#include "vgen/nn/cross_entropy.h"

#include <torch/torch.h>

#include "vgen/kernels/cross_entropy.h"

namespace vgen::nn {
namespace {

namespace F = torch::nn::functional;

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class CrossEntropyFunction : public torch::autograd::Function<CrossEntropyFunction> {
 public:
  /// loss, plain loss, is right
  static variable_list forward(AutogradContext* context, const torch::Tensor& logits_NV,
                               const torch::Tensor& target_N, double label_smoothing) {
    const auto result = kernels::cross_entropy(logits_NV, target_N, label_smoothing);
    context->save_for_backward({logits_NV, target_N, result.log_sum_N});
    context->saved_data["label_smoothing"] = label_smoothing;
    context->mark_non_differentiable({result.plain_loss_N, result.is_right_N});
    return {result.loss_N, result.plain_loss_N, result.is_right_N};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    TORCH_INTERNAL_ASSERT(!torch::GradMode::is_enabled(), "cross_entropy has no second derivative");
    const variable_list saved = context->get_saved_variables();
    return {kernels::cross_entropy_gradient(saved[0], saved[1], saved[2], gradients[0],
                                            context->saved_data["label_smoothing"].toDouble()),
            {},
            {}};
  }
};

at::Tensor plain_operators(const at::Tensor& logits_NV, const at::Tensor& target_N,
                           double label_smoothing) {
  return F::cross_entropy(
      logits_NV.to(torch::kFloat32), target_N,
      F::CrossEntropyFuncOptions().reduction(torch::kNone).label_smoothing(label_smoothing));
}

}  // namespace

at::Tensor cross_entropy(const at::Tensor& logits, const at::Tensor& target,
                         double label_smoothing) {
  const at::Tensor logits_NV = logits.flatten(0, -2), target_N = target.flatten();
  const at::Tensor loss_N =
      kernels::is_cross_entropy_input(logits_NV, target_N)
          ? CrossEntropyFunction::apply(logits_NV, target_N, label_smoothing)[0]
          : plain_operators(logits_NV, target_N, label_smoothing);
  return loss_N.view_as(target);
}

RowScores score_rows(const at::Tensor& logits, const at::Tensor& target, double label_smoothing) {
  const at::Tensor logits_NV = logits.flatten(0, -2), target_N = target.flatten();
  variable_list scores;
  if (kernels::is_cross_entropy_input(logits_NV, target_N)) {
    scores = CrossEntropyFunction::apply(logits_NV, target_N, label_smoothing);
  } else {
    const at::Tensor detached_NV = logits_NV.detach();
    const at::Tensor loss_N = plain_operators(logits_NV, target_N, label_smoothing);
    scores = {loss_N,
              label_smoothing == 0 ? loss_N.detach() : plain_operators(detached_NV, target_N, 0),
              detached_NV.argmax(-1).eq(target_N).to(torch::kFloat32)};
  }
  return {.loss = scores[0].view_as(target),
          .plain_loss = scores[1].view_as(target),
          .is_right = scores[2].view_as(target)};
}

}  // namespace vgen::nn
