#pragma once
// The CUDA form of what cached_attention.h, columns.h, group_norm.h, rms_norm.h, adaln.h, swiglu.h,
// rotary.h, unit_heads.h and cross_entropy.h say: cuda_kernels.cpp where CUDA is compiled in,
// no_cuda_kernels.cpp otherwise. All run on the current stream of their inputs' device, without
// waiting for it, and may be recorded in a graph.

#include "vgen/kernels/adaln.h"
#include "vgen/kernels/cached_attention.h"
#include "vgen/kernels/cross_entropy.h"
#include "vgen/kernels/group_norm.h"
#include "vgen/kernels/rms_norm.h"
#include "vgen/kernels/rotary.h"
#include "vgen/kernels/swiglu.h"
#include "vgen/kernels/unit_heads.h"

namespace vgen::kernels {

struct CudaKernels {
  at::Tensor (*cached_attention)(const CachedAttention& args);
  void (*add_to_channels)(const at::Tensor& x_BCHW, const at::Tensor& bias_C,
                          const at::Tensor& residual_BCHW);
  at::Tensor (*column_sums)(const at::Tensor& x_MN);
  GroupNormStats (*group_norm_stats)(const at::Tensor& x_BCHW, int64_t groups, double eps);
  at::Tensor (*group_norm_apply)(const at::Tensor& x_BCHW, const GroupNormStats& stats,
                                 const GroupNormParameters& parameters);
  GroupNormGradients (*group_norm_gradient)(const at::Tensor& x_BCHW,
                                            const at::Tensor& gradient_BCHW,
                                            const GroupNormStats& stats,
                                            const GroupNormParameters& parameters);
  RmsNormResult (*rms_norm)(const at::Tensor& x, const at::Tensor& weight_C, double eps,
                            at::ScalarType dtype);
  RmsNormGradients (*rms_norm_gradient)(const at::Tensor& x, const at::Tensor& weight_C,
                                        const at::Tensor& rstd_N, const at::Tensor& dy);
  ModulatedNormResult (*modulated_norm)(const at::Tensor& x_BLC, const at::Tensor& scale_BC,
                                        const at::Tensor& shift_BC, double eps,
                                        at::ScalarType dtype);
  ModulatedNormGradients (*modulated_norm_gradient)(const at::Tensor& x_BLC,
                                                    const at::Tensor& scale_BC,
                                                    const at::Tensor& mean_N,
                                                    const at::Tensor& rstd_N,
                                                    const at::Tensor& dy_BLC);
  at::Tensor (*gated_sum)(const at::Tensor& x_BLC, const at::Tensor& branch_BLC,
                          const at::Tensor& gate_BC);
  GatedSumGradients (*gated_sum_gradient)(const at::Tensor& branch_BLC, const at::Tensor& gate_BC,
                                          const at::Tensor& dy_BLC);
  at::Tensor (*swiglu)(const at::Tensor& a, const at::Tensor& b);
  SwigluGradients (*swiglu_gradient)(const at::Tensor& a, const at::Tensor& b,
                                     const at::Tensor& dy);
  at::Tensor (*rotate_heads)(const at::Tensor& heads_BSGD, const at::Tensor& rope_SP2,
                             int64_t num_turned);
  at::Tensor (*rotate_heads_gradient)(const HeadGradients& gradients, const at::Tensor& rope_SP2);
  UnitHeadsResult (*unit_heads)(const at::Tensor& qkv_BL3HD, const at::Tensor& scale_H);
  UnitHeadsGradients (*unit_heads_gradient)(const at::Tensor& qkv_BL3HD, const at::Tensor& scale_H,
                                            const at::Tensor& rnorm_N2H,
                                            const at::Tensor& dquery_BLHD,
                                            const at::Tensor& dkey_BLHD,
                                            const at::Tensor& dvalue_BLHD);
  CrossEntropyResult (*cross_entropy)(const at::Tensor& logits_NV, const at::Tensor& target_N,
                                      double label_smoothing);
  at::Tensor (*cross_entropy_gradient)(const at::Tensor& logits_NV, const at::Tensor& target_N,
                                       const at::Tensor& log_sum_N, const at::Tensor& dloss_N,
                                       double label_smoothing);
};

/// Null without CUDA.
const CudaKernels* cuda_kernels();

inline constexpr int64_t kMaxCudaColumns = 8192;   ///< that are summed over: a block has a row
inline constexpr int64_t kMaxCudaChannels = 2048;  ///< of images: a block has whole pixels
inline constexpr int64_t kMaxCudaHeadDim = 256;    ///< of heads of unit length: a warp has a head
inline constexpr int64_t kAnyColumns = INT32_MAX;
/// Whether this build has CUDA kernels and x is on a CUDA device, float32, bfloat16 or float16,
/// with something in it, and its last axis a multiple of 8 of at most `max_columns`.
bool is_cuda_input(const at::Tensor& x, int64_t max_columns = kMaxCudaColumns);

}  // namespace vgen::kernels
