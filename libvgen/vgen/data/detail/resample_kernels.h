#pragma once
// The two inner loops of the resampler, each in a form for every x86 and one for AVX2, chosen once
// by the CPU. Both give the same bits: they compute in integers.

#include <cstdint>

namespace vgen::data::detail {

/// Fractional bits of a weight (Pillow: PRECISION_BITS).
inline constexpr int kWeightBits = 22;

/// out[i] = clip8((2^21 + sum over j < taps of weights[j] * in[j * stride + i]) >> 22), i < count.
/// `count` is at least 1; nothing outside the `count` bytes of each tap is read.
using WeightedSum = void (*)(const uint8_t* in, int64_t stride, const int32_t* weights,
                             int64_t taps, uint8_t* out, int64_t count);

/// out[c * 16 + r] = rows[r][c] for r < 16, c < count.
using TransposeIn = void (*)(const uint8_t* const rows[16], int64_t count, uint8_t* out);

/// rows[r][c] = in[c * 16 + r] for r < 16, c < count.
using TransposeOut = void (*)(const uint8_t* in, int64_t count, uint8_t* const rows[16]);

struct ResampleKernels {
  WeightedSum weighted_sum;
  TransposeIn transpose_in;
  TransposeOut transpose_out;
};

/// The fastest kernels that this CPU runs; `portable_only` gives the plain ones, for tests.
const ResampleKernels& resample_kernels(bool portable_only = false);

}  // namespace vgen::data::detail
