#pragma once
// The table of one instruction level. Included last by decode_<isa>.cpp.
#include "vgen/kernels/detail/attend_simd.h"
#include "vgen/kernels/detail/decode_rows_simd.h"
#include "vgen/kernels/detail/linear_simd.h"

namespace vgen::kernels {
namespace {

constexpr DecodeKernels kKernels{.linear = linear,
                                 .attend = attend,
                                 .rms_norm = rms_norm,
                                 .modulated_norm = modulated_norm,
                                 .store_head = store_head,
                                 .guide = guide,
                                 .exponentiate = exponentiate};

}  // namespace
}  // namespace vgen::kernels
