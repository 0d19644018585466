#pragma once
// Cross entropy of logits against classes, and what else a look at them tells.

#include <ATen/core/Tensor.h>

namespace vgen::nn {

/// Cross entropy of each row, nats: float32, the shape of `target`.
/// logits: (..., V), floating, of any precision; computed in float32. target: int64 (...), each in
/// [0, V). label_smoothing: share of the target that is spread over all classes.
/// Inputs of kernels/cross_entropy.h are read once forward and once backward, and the gradient has
/// their dtype; there is no second derivative then, and a target that is no class is an
/// Error(kInvalidArgument) on the CPU, a loss of NaN on CUDA.
at::Tensor cross_entropy(const at::Tensor& logits, const at::Tensor& target,
                         double label_smoothing = 0);

/// Of each row, float32, the shape of the targets.
struct RowScores {
  at::Tensor loss;        ///< as cross_entropy()
  at::Tensor plain_loss;  ///< without label smoothing, no gradient
  at::Tensor is_right;    ///< 1 where the target is the likeliest class, else 0, no gradient
};
RowScores score_rows(const at::Tensor& logits, const at::Tensor& target,
                     double label_smoothing = 0);

}  // namespace vgen::nn
