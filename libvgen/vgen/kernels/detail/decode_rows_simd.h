#pragma once
// Norms, heads and logits, a row at a time; see decode_vectors.h.
#include "vgen/kernels/detail/decode_vectors.h"

namespace vgen::kernels {
namespace {

void rms_norm(const float* x, const float* weight, float* out, int64_t size, float epsilon) {
  const int64_t whole = size / kWidth * kWidth;
  Floats sums{};
  for (int64_t i = 0; i < whole; i += kWidth) {
    const Floats value = load<Floats>(x + i);
    sums += value * value;
  }
  float sum = 0;
  for (int i = 0; i < kWidth; ++i) sum += sums[i];
  for (int64_t i = whole; i < size; ++i) sum += x[i] * x[i];
  const float scale = 1.0f / __builtin_sqrtf(sum / static_cast<float>(size) + epsilon);
  for (int64_t i = 0; i < whole; i += kWidth) {
    store(out + i, load<Floats>(x + i) * scale * load<Floats>(weight + i));
  }
  for (int64_t i = whole; i < size; ++i) out[i] = x[i] * scale * weight[i];
}

// Four sums, so that additions do not wait for each other. size: a multiple of kWidth, or the rest
// is left out.
template <class Term>
inline float sum_of(int64_t size, const Term& term) {
  Floats sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kWidth <= size; i += 4 * kWidth) {
    for (int u = 0; u < 4; ++u) sums[u] += term(i + u * kWidth);
  }
  for (; i + kWidth <= size; i += kWidth) sums[0] += term(i);
  const Floats all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float sum = 0;
  for (int lane = 0; lane < kWidth; ++lane) sum += all[lane];
  return sum;
}

void modulated_norm(const float* x, const float* scale, const float* shift, float* out,
                    int64_t size, float epsilon) {
  const int64_t whole = size / kWidth * kWidth;
  const auto count = static_cast<float>(size);
  float sum = sum_of(size, [&](int64_t i) { return load<Floats>(x + i); });
  for (int64_t i = whole; i < size; ++i) sum += x[i];
  const float mean = sum / count;
  float squares = sum_of(size, [&](int64_t i) {
    const Floats centred = load<Floats>(x + i) - mean;
    return centred * centred;
  });
  for (int64_t i = whole; i < size; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const float rstd = 1.0f / __builtin_sqrtf(squares / count + epsilon);
  for (int64_t i = 0; i < whole; i += kWidth) {
    const Floats normed = (load<Floats>(x + i) - mean) * rstd;
    store(out + i, normed * (load<Floats>(scale + i) + 1.0f) + load<Floats>(shift + i));
  }
  for (int64_t i = whole; i < size; ++i) {
    out[i] = (x[i] - mean) * rstd * (scale[i] + 1.0f) + shift[i];
  }
}

// Rounds to nearest, ties to even; a NaN stays one.
inline void store_bfloat16(std::byte* to, Floats value) {
  using HalfWords [[gnu::vector_size(kWidth * 2)]] = uint16_t;
  const Words bits = __builtin_bit_cast(Words, value);
  const Words is_nan = __builtin_bit_cast(Words, value != value);
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const auto halves = __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7fc0u), HalfWords);
  __builtin_memcpy(to, &halves, sizeof(halves));
}

void store_head(const float* x, std::byte* out, int64_t size, float length, Storage storage) {
  const int64_t whole = size / kWidth * kWidth;
  float factor = 1;
  if (length > 0) {
    float squares = sum_of(size, [&](int64_t i) {
      const Floats value = load<Floats>(x + i);
      return value * value;
    });
    for (int64_t i = whole; i < size; ++i) squares += x[i] * x[i];
    const float norm = __builtin_sqrtf(squares);
    factor = length / (norm > 1e-12f ? norm : 1e-12f);
  }
  const int64_t item = storage == Storage::kBFloat16 ? 2 : 4;
  const auto put = [storage](std::byte* to, Floats value) {
    if (storage == Storage::kBFloat16) {
      store_bfloat16(to, value);
    } else {
      __builtin_memcpy(to, &value, sizeof(value));
    }
  };
  for (int64_t i = 0; i < whole; i += kWidth) put(out + i * item, load<Floats>(x + i) * factor);
  if (whole == size) return;
  float rest[kWidth] = {};
  for (int64_t i = whole; i < size; ++i) rest[i - whole] = x[i];
  std::byte lanes[kWidth * 4];
  put(lanes, load<Floats>(rest) * factor);
  for (int64_t i = 0; i < (size - whole) * item; ++i) out[whole * item + i] = lanes[i];
}

float guide(const float* conditional, const float* null, float* out, int64_t size, float scale,
            float inverse_temperature) {
  Floats maxima = broadcast(-__builtin_inff());
  float maximum = -__builtin_inff(), check = 0;
  Floats checks{};  // NaN or infinity times zero is NaN
  const int64_t whole = size / kWidth * kWidth;
  for (int64_t i = 0; i < whole; i += kWidth) {
    Floats value = load<Floats>(conditional + i);
    if (null != nullptr) {
      const Floats base = load<Floats>(null + i);
      value = base + (value - base) * scale;
    }
    value *= inverse_temperature;
    store(out + i, value);
    maxima = larger(value, maxima);
    checks += value * 0.0f;
  }
  for (int64_t i = whole; i < size; ++i) {
    float value = conditional[i];
    if (null != nullptr) value = null[i] + (value - null[i]) * scale;
    out[i] = value * inverse_temperature;
    maximum = out[i] > maximum ? out[i] : maximum;
    check += out[i] * 0.0f;
  }
  for (int i = 0; i < kWidth; ++i) {
    maximum = maxima[i] > maximum ? maxima[i] : maximum;
    check += checks[i];
  }
  return maximum + check;
}

void exponentiate(const float* x, float* out, int64_t size, float maximum) {
  const int64_t whole = size / kWidth * kWidth;
  for (int64_t i = 0; i < whole; i += kWidth) {
    store(out + i, exponential(load<Floats>(x + i) - maximum));
  }
  if (whole == size) return;
  float rest[kWidth] = {};
  for (int64_t i = whole; i < size; ++i) rest[i - whole] = x[i];
  store(rest, exponential(load<Floats>(rest) - maximum));
  for (int64_t i = whole; i < size; ++i) out[i] = rest[i - whole];
}

}  // namespace
}  // namespace vgen::kernels
