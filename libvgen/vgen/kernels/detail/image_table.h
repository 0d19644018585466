#pragma once
// The table of one instruction set. Included last by image_<isa>.cpp.
#include "vgen/kernels/detail/group_norm_simd.h"
#include "vgen/kernels/detail/winograd_simd.h"

namespace vgen::kernels {
namespace {

constexpr ImageKernels kKernels = {
    .isa = VGEN_SIMD_ISA,
    .width = kWidth,
    .panel = kPanel,
    .rows = kRows,
    .block_tiles = kBlockTiles,
    .winograd_pack = winograd_pack,
    .winograd_scratch = winograd_scratch,
    .winograd_forward = winograd_forward,
    .winograd_products_scratch = winograd_products_scratch,
    .winograd_products = winograd_products,
    .winograd_output = winograd_output,
    .winograd_input = winograd_input,
    .winograd_gradient = winograd_gradient,
    .winograd_accumulate = winograd_accumulate,
    .winograd_weight_gradient = winograd_weight_gradient,
    .group_norm_sums = group_norm_sums,
    .group_norm_apply = group_norm_apply,
    .group_norm_gradient_sums = group_norm_gradient_sums,
    .group_norm_gradient = group_norm_gradient,
    .nearest_code = nearest_code,
};

}  // namespace
}  // namespace vgen::kernels
