#pragma once
// The table of one instruction set. Included last by rows_<isa>.cpp.
#include "vgen/kernels/detail/rows_simd.h"

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
};

}  // namespace
}  // namespace vgen::kernels
