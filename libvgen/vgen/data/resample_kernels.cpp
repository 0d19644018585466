#include "vgen/data/detail/resample_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstring>

namespace vgen::data::detail {
namespace {

// Vector type of the compiler: becomes the shuffles of whatever instruction set there is.
using U8x16 = uint8_t __attribute__((vector_size(16)));

constexpr int32_t kHalf = 1 << (kWeightBits - 1);

uint8_t sum_one(const uint8_t* in, int64_t stride, const int32_t* weights, int64_t taps) {
  int32_t sum = kHalf;
  for (int64_t j = 0; j < taps; ++j) sum += weights[j] * in[j * stride];
  return static_cast<uint8_t>(std::clamp(sum >> kWeightBits, 0, 255));
}

void weighted_sum(const uint8_t* in, int64_t stride, const int32_t* weights, int64_t taps,
                  uint8_t* out, int64_t count) {
  constexpr int64_t kBlock = 16;
  int64_t i = 0;
  for (; i + kBlock <= count; i += kBlock) {
    int32_t sums[kBlock];
    std::fill_n(sums, kBlock, kHalf);
    for (int64_t j = 0; j < taps; ++j) {
      for (int64_t k = 0; k < kBlock; ++k) sums[k] += weights[j] * in[j * stride + i + k];
    }
    for (int64_t k = 0; k < kBlock; ++k) {
      out[i + k] = static_cast<uint8_t>(std::clamp(sums[k] >> kWeightBits, 0, 255));
    }
  }
  for (; i < count; ++i) out[i] = sum_one(in + i, stride, weights, taps);
}

#if defined(__x86_64__)
/// Groups * 8 neighbouring sums, held in registers over all taps.
template <int Groups>
__attribute__((target("avx2"))) inline void sum_block_avx2(const uint8_t* in, int64_t stride,
                                                           const int32_t* weights, int64_t taps,
                                                           uint8_t* out) {
  __m256i sums[Groups];
  for (int g = 0; g < Groups; ++g) sums[g] = _mm256_set1_epi32(kHalf);
  for (int64_t j = 0; j < taps; ++j, in += stride) {
    const __m256i weight = _mm256_set1_epi32(weights[j]);
    for (int g = 0; g < Groups; ++g) {
      const auto* bytes = reinterpret_cast<const __m128i*>(in + 8 * g);
      const __m256i values = _mm256_cvtepu8_epi32(_mm_loadl_epi64(bytes));
      sums[g] = _mm256_add_epi32(sums[g], _mm256_mullo_epi32(values, weight));
    }
  }
  for (int g = 0; g < Groups; ++g) {  // the two packs saturate, which is the clipping
    const __m256i value = _mm256_srai_epi32(sums[g], kWeightBits);
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + 8 * g), _mm_packus_epi16(words, words));
  }
}

__attribute__((target("avx2"))) void weighted_sum_avx2(const uint8_t* in, int64_t stride,
                                                       const int32_t* weights, int64_t taps,
                                                       uint8_t* out, int64_t count) {
  int64_t i = 0;
  for (; i + 48 <= count; i += 48) sum_block_avx2<6>(in + i, stride, weights, taps, out + i);
  for (; i + 8 <= count; i += 8) sum_block_avx2<1>(in + i, stride, weights, taps, out + i);
  for (; i < count; ++i) out[i] = sum_one(in + i, stride, weights, taps);
}
#endif

U8x16 load(const uint8_t* from) {
  U8x16 value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

/// Rows r and r + 8 interleaved, four times over: a 16 x 16 transpose.
void transpose_16x16(U8x16 rows[16]) {
  for (int round = 0; round < 4; ++round) {
    U8x16 next[16];
    for (int r = 0; r < 8; ++r) {
      next[2 * r] = __builtin_shufflevector(rows[r], rows[r + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20,
                                            5, 21, 6, 22, 7, 23);
      next[2 * r + 1] = __builtin_shufflevector(rows[r], rows[r + 8], 8, 24, 9, 25, 10, 26, 11, 27,
                                                12, 28, 13, 29, 14, 30, 15, 31);
    }
    for (int r = 0; r < 16; ++r) rows[r] = next[r];
  }
}

void transpose_in(const uint8_t* const rows[16], int64_t count, uint8_t* out) {
  const auto block_at = [&](int64_t c) {
    U8x16 block[16];
    for (int r = 0; r < 16; ++r) block[r] = load(rows[r] + c);
    transpose_16x16(block);
    std::memcpy(out + 16 * c, block, sizeof(block));
  };
  int64_t c = 0;
  for (; c + 16 <= count; c += 16) block_at(c);
  if (c == count) return;
  if (count >= 16) {
    block_at(count - 16);
    return;
  }
  for (; c < count; ++c) {
    for (int r = 0; r < 16; ++r) out[16 * c + r] = rows[r][c];
  }
}

void transpose_out(const uint8_t* in, int64_t count, uint8_t* const rows[16]) {
  const auto block_at = [&](int64_t c) {
    U8x16 block[16];
    std::memcpy(block, in + 16 * c, sizeof(block));
    transpose_16x16(block);
    for (int r = 0; r < 16; ++r) std::memcpy(rows[r] + c, &block[r], sizeof(block[r]));
  };
  int64_t c = 0;
  for (; c + 16 <= count; c += 16) block_at(c);
  if (c == count) return;
  if (count >= 16) {
    block_at(count - 16);
    return;
  }
  for (; c < count; ++c) {
    for (int r = 0; r < 16; ++r) rows[r][c] = in[16 * c + r];
  }
}

}  // namespace

const std::vector<ResampleKernels>& supported_resample_kernels() {
  static const std::vector<ResampleKernels> kKernels = [] {
    std::vector<ResampleKernels> kernels = {
        {"portable", weighted_sum, transpose_in, transpose_out}};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
      kernels.push_back({"avx2", weighted_sum_avx2, transpose_in, transpose_out});
    }
#endif
    return kernels;
  }();
  return kKernels;
}

}  // namespace vgen::data::detail
