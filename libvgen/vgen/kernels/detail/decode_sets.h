#pragma once
// The sets that this build has; null where the compiler's target has no such instructions.

#include "vgen/kernels/decode_kernels.h"

namespace vgen::kernels {

const DecodeKernels* decode_portable();
const DecodeKernels* decode_avx2();
const DecodeKernels* decode_avx512();
const TileKernels* tiles_amx();

}  // namespace vgen::kernels
