#pragma once
// The inner loops of the resampler: the sum in a form for every CPU and one for AVX2, chosen
// once. Both give the same bits: they compute in integers.

#include <cstdint>
#include <vector>

namespace vgen::data::detail {

/// Fractional bits of a weight (Pillow: PRECISION_BITS).
inline constexpr int kWeightBits = 22;

/// out[i] = clip8((2^21 + sum over j < taps of weights[j] * in[j * stride + i]) >> 22), i < count.
/// `count` and `taps` are at least 1; nothing outside the `count` bytes of each tap is read.
/// Weights are less than 1.98 (* 2^22) in magnitude; those of the filters stay below 1.3.
using WeightedSum = void (*)(const uint8_t* in, int64_t stride, const int32_t* weights,
                             int64_t taps, uint8_t* out, int64_t count);

/// out[c * 16 + r] = rows[r][c] for r < 16, c < count.
using TransposeIn = void (*)(const uint8_t* const rows[16], int64_t count, uint8_t* out);

/// rows[r][c] = in[c * 16 + r] for r < 16, c < count.
using TransposeOut = void (*)(const uint8_t* in, int64_t count, uint8_t* const rows[16]);

struct ResampleKernels {
  const char* name;
  WeightedSum weighted_sum;
  TransposeIn transpose_in;
  TransposeOut transpose_out;
};

/// Those that this CPU runs, the portable ones first, the fastest last.
const std::vector<ResampleKernels>& supported_resample_kernels();

/// The fastest.
inline const ResampleKernels& resample_kernels() { return supported_resample_kernels().back(); }

}  // namespace vgen::data::detail
