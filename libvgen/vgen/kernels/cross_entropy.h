#pragma once
// Cross entropy of logits in one pass, and its gradient in another. N rows, V classes.
// No autograd here: nn/cross_entropy.h has it. Results do not depend on the number of threads. All
// functions may be called from several threads.

#include <ATen/core/Tensor.h>

#include "vgen/kernels/cpu_isa.h"

namespace vgen::kernels {

/// Whether the logits are (N, V) with V > 0 and the targets int64 (N) beside them: float32 or
/// bfloat16 on the CPU, any of is_cuda_input() (detail/cuda_kernels.h) on CUDA.
bool is_cross_entropy_input(const at::Tensor& logits_NV, const at::Tensor& target_N);

/// All float32.
struct CrossEntropyResult {
  at::Tensor loss_N;        ///< nats; the target smoothed
  at::Tensor plain_loss_N;  ///< without smoothing
  at::Tensor is_right_N;    ///< 1 where the target is the likeliest class, the first of equals
  at::Tensor log_sum_N;     ///< log(sum(exp(logits)))
};
/// label_smoothing: share of the target that is spread over all classes. Throws
/// Error(kInvalidArgument) for a target that is no class; on CUDA, where nobody waits for the
/// device, its losses and gradients are NaN.
CrossEntropyResult cross_entropy(const at::Tensor& logits_NV, const at::Tensor& target_N,
                                 double label_smoothing = 0, CpuIsa isa = best_cpu_isa());

/// (softmax - smoothed target) times dloss_N, in the dtype of the logits. log_sum_N: of the result.
at::Tensor cross_entropy_gradient(const at::Tensor& logits_NV, const at::Tensor& target_N,
                                  const at::Tensor& log_sum_N, const at::Tensor& dloss_N,
                                  double label_smoothing = 0, CpuIsa isa = best_cpu_isa());

}  // namespace vgen::kernels
