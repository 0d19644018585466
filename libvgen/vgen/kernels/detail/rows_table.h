#pragma once
// The table of one instruction set. Included last by rows_<isa>.cpp.
#include "vgen/kernels/detail/dropout_simd.h"
#include "vgen/kernels/detail/rows_branch_simd.h"

namespace vgen::kernels {
namespace {

constexpr RowKernels kKernels = {
    .isa = VGEN_SIMD_ISA,
    .rms_norm = rms_norm,
    .rms_norm_gradient = rms_norm_gradient,
    .rotate = rotate,
    .swiglu = swiglu,
    .swiglu_gradient = swiglu_gradient,
    .softmax_row = softmax_row,
    .softmax_gradient = softmax_gradient,
    .modulated_norm = modulated_norm,
    .modulated_norm_gradient = modulated_norm_gradient,
    .gated_sum = gated_sum,
    .gated_sum_gradient = gated_sum_gradient,
    .unit_heads = unit_heads,
    .unit_heads_gradient = unit_heads_gradient,
    .gelu = gelu,
    .gelu_gradient = gelu_gradient,
    .dropout = dropout,
};

}  // namespace
}  // namespace vgen::kernels
