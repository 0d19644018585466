#pragma once
// Dropout in vectors; see dropout.h and row_kernels.h. Included by rows_<isa>.cpp.
// The including source defines multiply_low: the low half of each pair of words times a factor.
#include "vgen/kernels/detail/rows_simd.h"

namespace vgen::kernels {
namespace {

/// x times `factor`: the high and the low words.
inline void multiply_wide(Words x, uint32_t factor, Words& high, Words& low) {
  const Pairs even = multiply_low((Pairs)x, factor);
  const Pairs odd = multiply_low((Pairs)x >> 32, factor);
  constexpr uint64_t kLow = 0xffffffffu;
  low = (Words)((even & kLow) | (odd << 32));
  high = (Words)((even >> 32) | (odd & ~kLow));
}

/// Philox4x32-10 (Salmon et al., SC 2011): a counter per lane, then four words.
inline void philox(Words (&counter)[4], uint64_t key) {
  auto key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    Words high0, low0, high1, low1;
    multiply_wide(counter[0], 0xD2511F53u, high0, low0);
    multiply_wide(counter[2], 0xCD9E8D57u, high1, low1);
    counter[0] = high1 ^ counter[1] ^ key0;
    counter[1] = low1;
    counter[2] = high0 ^ counter[3] ^ key1;
    counter[3] = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

template <class T>
inline void dropout_span(const T* x, T* out, int64_t count, int64_t span, const DropoutArgs& args) {
  constexpr int64_t kLanes = kDropoutSpan / 4;
  for (int64_t first = 0; first < kLanes; first += kWidth) {
    const int64_t index = span * kLanes + first;
    Words words[4] = {};
    for (int lane = 0; lane < kWidth; ++lane) {
      words[0][lane] = static_cast<uint32_t>(index) + static_cast<uint32_t>(lane);
    }
    words[1] += static_cast<uint32_t>(index >> 32);
    philox(words, args.key);
    for (int64_t w = 0; w < 4; ++w) {
      const int64_t at = w * kLanes + first;
      if (at >= count) break;
      const Ints is_kept = (Ints)(words[w] >= args.threshold);
      const Floats scaled = load_some(x + at, count - at) * args.scale;
      store_some(out + at, (Floats)((Ints)scaled & is_kept), count - at);
    }
  }
}

void dropout(const DropoutArgs& args, int64_t begin, int64_t end) {
  by_type(args.x.is_bf16, [&](auto type) {
    using T = decltype(type);
    for (int64_t span = begin; span < end; ++span) {
      const int64_t first = span * kDropoutSpan;
      dropout_span(static_cast<const T*>(args.x.data) + first,
                   static_cast<T*>(args.out.data) + first, min_of(args.count - first, kDropoutSpan),
                   span, args);
    }
  });
}

}  // namespace
}  // namespace vgen::kernels
