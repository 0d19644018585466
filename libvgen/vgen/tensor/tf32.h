#pragma once
// TF32: float32 with 10 bits of mantissa, in which tensor cores multiply many times faster.

#include <c10/core/Device.h>

namespace vgen {

/// Whether matrix products and convolutions of float32 on CUDA may round what they multiply to
/// TF32, from now on and in the whole process. LibTorch begins with convolutions alone.
void allow_tf32(bool is_allowed);
/// Whether matrix products of float32 on that device may: what belongs to the settings of a result.
bool uses_tf32(c10::Device device);

}  // namespace vgen
