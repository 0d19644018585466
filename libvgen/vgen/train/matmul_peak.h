#pragma once
// What a device can do at best, for the share of it that a program uses (MFU).

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

namespace vgen::train {

/// Operations per second of a large square matrix product on the device: the best of a few runs,
/// together about half a second. A bound that can be reached, so a share of it is higher than one
/// of a data sheet's peak. On a CPU that computes in `dtype` slower than in float32, float32's.
/// Draws no random number.
double measure_matmul_flops(c10::Device device, c10::ScalarType dtype);

}  // namespace vgen::train
