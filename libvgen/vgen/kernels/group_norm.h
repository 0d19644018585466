#pragma once
// Group normalisation, with SiLU behind it, in one pass over channels-last activations.
// B batch, C channels, G groups, H height, W width. No autograd here: nn/group_norm.h has it.
//
// Activations are float32 or bfloat16, on CUDA float16 too; all arithmetic is float32 and a result
// is rounded once. Results do not depend on the number of threads. All functions may be called from
// several threads.

#include <ATen/core/Tensor.h>

#include "vgen/kernels/cpu_isa.h"

namespace vgen::kernels {

/// Whether x can be normalised here: (B, C, H, W) channels-last, not empty, float32 or bfloat16 on
/// the CPU; on CUDA any of is_cuda_input() (detail/cuda_kernels.h) with at most 2048 channels.
bool is_group_norm_input(const at::Tensor& x_BCHW);

/// float32 (B, G): mean and 1 / sqrt(variance + eps) of each group.
struct GroupNormStats {
  at::Tensor mean_BG, rstd_BG;
};
GroupNormStats group_norm_stats(const at::Tensor& x_BCHW, int64_t groups, double eps,
                                CpuIsa isa = best_cpu_isa());

struct GroupNormParameters {
  at::Tensor weight_C, bias_C;  ///< float32
  bool has_silu = false;
  CpuIsa isa = best_cpu_isa();
  bool is_in_place = false;  ///< group_norm_apply writes into x and returns it
};

/// (x - mean) * rstd * weight + bias, then silu of it with has_silu. Dtype and layout of x.
at::Tensor group_norm_apply(const at::Tensor& x_BCHW, const GroupNormStats& stats,
                            const GroupNormParameters& parameters);

struct GroupNormGradients {
  at::Tensor x_BCHW;            ///< dtype of x, channels-last
  at::Tensor weight_C, bias_C;  ///< float32
};
/// gradient_BCHW: to the result of group_norm_apply; dtype and layout of x.
GroupNormGradients group_norm_gradient(const at::Tensor& x_BCHW, const at::Tensor& gradient_BCHW,
                                       const GroupNormStats& stats,
                                       const GroupNormParameters& parameters);

/// x += bias, and residual of its shape where that is defined, in float32, rounded once: what
/// follows a convolution. On CUDA alone, where LibTorch's own addition of a bias to channels-last
/// activations is several times slower than reading and writing them. bias_C: floating.
void add_to_channels(const at::Tensor& x_BCHW, const at::Tensor& bias_C,
                     const at::Tensor& residual_BCHW = {});

/// Sum over batch and pixels, float32 (C): the gradient to the bias of a convolution.
at::Tensor channel_sums(const at::Tensor& x_BCHW, CpuIsa isa = best_cpu_isa());

}  // namespace vgen::kernels
