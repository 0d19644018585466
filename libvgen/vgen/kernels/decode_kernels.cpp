#include "vgen/kernels/decode_kernels.h"

#include <algorithm>

#include "vgen/kernels/detail/decode_sets.h"

namespace vgen::kernels {

namespace {

// All else is as with AVX-512.
const DecodeKernels& with_tiles() {
  static const DecodeKernels kernels = [] {
    DecodeKernels set = *decode_avx512();
    set.tiles = tiles_amx();
    return set;
  }();
  return kernels;
}

}  // namespace

const DecodeKernels& decode_kernels(CpuIsa isa) {
  isa = std::min(isa, best_cpu_isa());
  if (isa >= CpuIsa::kAmx && decode_avx512() != nullptr) return with_tiles();
  if (isa >= CpuIsa::kAvx512 && decode_avx512() != nullptr) return *decode_avx512();
  if (isa >= CpuIsa::kAvx2 && decode_avx2() != nullptr) return *decode_avx2();
  return *decode_portable();
}

}  // namespace vgen::kernels
