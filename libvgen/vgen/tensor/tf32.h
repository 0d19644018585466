#pragma once
// TF32: float32 with 10 bits of mantissa, in which tensor cores multiply many times faster.

namespace vgen {

/// Whether matrix products and convolutions of float32 on CUDA may round what they multiply to
/// TF32, from now on and in the whole process. LibTorch begins with convolutions alone.
void allow_tf32(bool is_allowed);
/// Of matrix products.
bool is_tf32_allowed();

}  // namespace vgen
