// Vectors of four: every compiler target has them, or the compiler makes do.
#include "vgen/kernels/detail/decode_sets.h"

#define VGEN_SIMD_WIDTH 4
#include "vgen/kernels/detail/decode_vectors.h"

namespace vgen::kernels {
namespace {

inline Ints widen_int8(const std::byte* from) {
  const auto* bytes = reinterpret_cast<const int8_t*>(from);
  return Ints{bytes[0], bytes[1], bytes[2], bytes[3]};
}

}  // namespace
}  // namespace vgen::kernels

#include "vgen/kernels/detail/decode_simd.h"

namespace vgen::kernels {
const DecodeKernels* decode_portable() { return &kKernels; }
}  // namespace vgen::kernels
