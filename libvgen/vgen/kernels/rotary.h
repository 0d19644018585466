#pragma once
// Rotary positions of attention heads (arXiv:2104.09864) in one pass. No autograd here: nn/rotary.h
// has it. All functions may be called from several threads.
// B batch, S positions, D head dim, P = D / 2 pairs; G heads of a position: H of queries, then K of
// keys, then K of values.

#include <ATen/core/Tensor.h>

#include "vgen/kernels/cpu_isa.h"

namespace vgen::kernels {

/// Whether D is even, the table float32 (S, P, 2), and the heads are float32 or bfloat16 on the CPU
/// or any of is_cuda_input() (detail/cuda_kernels.h) on CUDA.
bool is_rotary_input(const at::Tensor& heads_BSGD, const at::Tensor& rope_SP2);

/// A copy whose first `num_turned` heads are turned: channels (2p, 2p + 1) by (cos, sin) = rope[s,
/// p], in float32. Contiguous.
at::Tensor rotate_heads(const at::Tensor& heads_BSGD, const at::Tensor& rope_SP2,
                        int64_t num_turned, CpuIsa isa = best_cpu_isa());

/// Gradients to queries and keys, which were turned, and to values. Of one dtype; any strides.
struct HeadGradients {
  at::Tensor query_BHSD, key_BKSD, value_BKSD;
};
/// The gradient to heads_BSGD of rotate_heads, contiguous.
at::Tensor rotate_heads_gradient(const HeadGradients& gradients, const at::Tensor& rope_SP2,
                                 CpuIsa isa = best_cpu_isa());

}  // namespace vgen::kernels
