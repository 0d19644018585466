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

/// Four taps at once for 64 neighbouring sums. The dot-product instruction multiplies bytes, so a
/// weight is cut into three signed bytes, weight = a * 2^16 + b * 2^8 + c, each summed on its own.
__attribute__((target("avx512f,avx512bw,avx512vnni"))) inline void sum_block_vnni(
    const uint8_t* in, int64_t stride, const int32_t* weights, int64_t taps, uint8_t* out,
    __mmask64 mask) {
  // Bytes 0, 1, 2 of four weights become the first three words.
  const __m128i by_byte = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i zero = _mm512_setzero_si512();
  __m512i a[4] = {zero, zero, zero, zero}, b[4] = {zero, zero, zero, zero};
  __m512i c[4] = {zero, zero, zero, zero};
  for (int64_t j = 0; j < taps; j += 4) {
    const int64_t count = std::min<int64_t>(4, taps - j);
    int32_t four[4] = {0, 0, 0, 0};
    std::memcpy(four, weights + j, static_cast<size_t>(count) * sizeof(int32_t));
    __m512i rows[4];
    for (int64_t r = 0; r < 4; ++r) {  // a missing row has weight 0
      rows[r] = _mm512_maskz_loadu_epi8(mask, in + (j + std::min(r, count - 1)) * stride);
    }
    // With 0x808080 added every byte is a digit plus 128.
    __m128i digits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(four));
    digits = _mm_shuffle_epi8(_mm_add_epi32(digits, _mm_set1_epi32(0x808080)), by_byte);
    digits = _mm_xor_si128(digits, _mm_set1_epi8(static_cast<char>(0x80)));
    const __m512i weight_c = _mm512_broadcastd_epi32(digits);
    const __m512i weight_b = _mm512_broadcastd_epi32(_mm_srli_si128(digits, 4));
    const __m512i weight_a = _mm512_broadcastd_epi32(_mm_srli_si128(digits, 8));
    // The bytes of one output's four taps side by side.
    const __m512i low01 = _mm512_unpacklo_epi8(rows[0], rows[1]);
    const __m512i high01 = _mm512_unpackhi_epi8(rows[0], rows[1]);
    const __m512i low23 = _mm512_unpacklo_epi8(rows[2], rows[3]);
    const __m512i high23 = _mm512_unpackhi_epi8(rows[2], rows[3]);
    const __m512i quads[4] = {
        _mm512_unpacklo_epi16(low01, low23), _mm512_unpackhi_epi16(low01, low23),
        _mm512_unpacklo_epi16(high01, high23), _mm512_unpackhi_epi16(high01, high23)};
    for (int q = 0; q < 4; ++q) {
      a[q] = _mm512_dpbusd_epi32(a[q], quads[q], weight_a);
      b[q] = _mm512_dpbusd_epi32(b[q], quads[q], weight_b);
      c[q] = _mm512_dpbusd_epi32(c[q], quads[q], weight_c);
    }
  }
  __m512i sums[4];
  for (int q = 0; q < 4; ++q) {
    sums[q] = _mm512_add_epi32(_mm512_slli_epi32(a[q], 16), _mm512_slli_epi32(b[q], 8));
    sums[q] = _mm512_add_epi32(sums[q], _mm512_add_epi32(c[q], _mm512_set1_epi32(kHalf)));
    sums[q] = _mm512_srai_epi32(sums[q], kWeightBits);
  }
  // The packs undo the order of the unpacks, and saturate.
  const __m512i words01 = _mm512_packs_epi32(sums[0], sums[1]);
  const __m512i words23 = _mm512_packs_epi32(sums[2], sums[3]);
  _mm512_mask_storeu_epi8(out, mask, _mm512_packus_epi16(words01, words23));
}

__attribute__((target("avx512f,avx512bw,avx512vnni"))) void weighted_sum_vnni(
    const uint8_t* in, int64_t stride, const int32_t* weights, int64_t taps, uint8_t* out,
    int64_t count) {
  for (int64_t i = 0; i < count; i += 64) {
    const int64_t left = count - i;
    const __mmask64 mask = left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
    sum_block_vnni(in + i, stride, weights, taps, out + i, mask);
  }
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
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni")) {
      kernels.push_back({"avx512-vnni", weighted_sum_vnni, transpose_in, transpose_out});
    }
#endif
    return kernels;
  }();
  return kKernels;
}

}  // namespace vgen::data::detail
