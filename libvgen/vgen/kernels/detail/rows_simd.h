#pragma once
// RMSNorm, rotary positions, SwiGLU, softmax; see row_kernels.h. Included by rows_<isa>.cpp.
#include "vgen/kernels/detail/float_simd.h"
#include "vgen/kernels/detail/row_kernels.h"

namespace vgen::kernels {
namespace {

typedef uint64_t Pairs __attribute__((vector_size(kWidth * 4)));  ///< of float, the first below

template <class T>
inline const T* in_row(Elements rows, int64_t index) {
  return static_cast<const T*>(rows.data) + index;
}
template <class T>
inline T* out_row(Elements rows, int64_t index) {
  return static_cast<T*>(rows.data) + index;
}

/// body(c, count) for vectors that begin at column c and have `count` columns left.
template <class Body>
inline void for_columns(int64_t columns, const Body& body) {
  int64_t c = 0;
  for (; c + kWidth <= columns; c += kWidth) body(c, kWidth);
  if (c < columns) body(c, columns - c);
}

inline float sum_of(Floats value) {
  float lanes[kWidth];
  store(lanes, value);
  for (int64_t half = kWidth / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

inline float max_of(Floats value) {
  float maximum = value[0];
  for (int64_t i = 1; i < kWidth; ++i) maximum = value[i] > maximum ? value[i] : maximum;
  return maximum;
}

/// Sum of term(c, count), whose lanes from `count` on are zero. Four sums, so that additions do not
/// wait for each other.
template <class Term>
inline float sum_columns(int64_t columns, const Term& term) {
  Floats sums[4] = {};
  int64_t c = 0;
  for (; c + 4 * kWidth <= columns; c += 4 * kWidth) {
    for (int64_t u = 0; u < 4; ++u) sums[u] += term(c + u * kWidth, kWidth);
  }
  for (; c < columns; c += kWidth) sums[0] += term(c, columns - c);
  return sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

/// What a T keeps of a value.
template <class T>
inline Floats rounded(Floats value) {
  T lanes[kWidth];
  store(lanes, value);
  return load(lanes);
}

// ---- RMSNorm

template <class X, class Y>
inline float rms_norm_row(const X* x, const float* weight, Y* y, int64_t columns, float eps) {
  const float squares = sum_columns(columns, [&](int64_t c, int64_t count) {
    const Floats value = load_some(x + c, count);
    return value * value;
  });
  const float rstd = 1.0f / __builtin_sqrtf(squares / static_cast<float>(columns) + eps);
  for_columns(columns, [&](int64_t c, int64_t count) {
    const Floats normed = rounded<X>(load_some(x + c, count) * rstd);
    store_some(y + c, normed * load_some(weight + c, count), count);
  });
  return rstd;
}

void rms_norm(const RmsNormArgs& args, int64_t begin, int64_t end) {
  by_type(args.x.is_bf16, [&](auto x_type) {
    by_type(args.y.is_bf16, [&](auto y_type) {
      for (int64_t r = begin; r < end; ++r) {
        args.rstd[r] = rms_norm_row(in_row<decltype(x_type)>(args.x, r * args.columns), args.weight,
                                    out_row<decltype(y_type)>(args.y, r * args.columns),
                                    args.columns, args.eps);
      }
    });
  });
}

/// With n = x rstd and g = dy weight: dx = rstd (g - n mean(g n)), dweight += dy n.
template <class X, class Y>
inline void rms_norm_gradient_row(const X* x, const Y* dy, const float* weight, float rstd, X* dx,
                                  float* weight_gradient, int64_t columns) {
  const float products = sum_columns(columns, [&](int64_t c, int64_t count) {
    return load_some(dy + c, count) * load_some(weight + c, count) * load_some(x + c, count);
  });
  const float mean = products * rstd / static_cast<float>(columns);
  for_columns(columns, [&](int64_t c, int64_t count) {
    const Floats normed = load_some(x + c, count) * rstd, gradient = load_some(dy + c, count);
    const Floats sum = load_some(weight_gradient + c, count) + gradient * rounded<X>(normed);
    store_some(weight_gradient + c, sum, count);
    store_some(dx + c, (gradient * load_some(weight + c, count) - normed * mean) * rstd, count);
  });
}

void rms_norm_gradient(const RmsNormGradientArgs& args, int64_t begin, int64_t end,
                       float* weight_gradient) {
  const int64_t columns = args.columns;
  for (int64_t c = 0; c < columns; ++c) weight_gradient[c] = 0;
  by_type(args.x.is_bf16, [&](auto x_type) {
    by_type(args.dy.is_bf16, [&](auto y_type) {
      using X = decltype(x_type);
      for (int64_t r = begin; r < end; ++r) {
        rms_norm_gradient_row(
            in_row<X>(args.x, r * columns), in_row<decltype(y_type)>(args.dy, r * columns),
            args.weight, args.rstd[r], out_row<X>(args.dx, r * columns), weight_gradient, columns);
      }
    });
  });
}

// ---- rotary positions

/// The first of each pair twice, the second twice, both in each other's place (little-endian).
inline Floats firsts(Floats value) {
  const Pairs pairs = (Pairs)value;
  return (Floats)(pairs << 32 | (pairs & 0xffffffffu));
}
inline Floats seconds(Floats value) {
  const Pairs pairs = (Pairs)value;
  return (Floats)(pairs >> 32 | (pairs & ~uint64_t{0xffffffffu}));
}
inline Floats swapped(Floats value) {
  const Pairs pairs = (Pairs)value;
  return (Floats)(pairs << 32 | pairs >> 32);
}

void rotate(const RotateArgs& args) {
  // (a, b) becomes (a cos - b sin, b cos + a sin): the sign of the sine alternates.
  const uint64_t sign_bit = uint64_t{1} << (args.is_inverse ? 63 : 31);
  by_type(args.in.is_bf16, [&](auto type) {
    using T = decltype(type);
    for_columns(args.head_dim, [&](int64_t c, int64_t count) {
      const Floats rope = load_some(args.rope + c, count);
      const Floats cosine = firsts(rope), sine = (Floats)((Pairs)seconds(rope) ^ sign_bit);
      for (int64_t h = 0; h < args.heads; ++h) {
        const Floats x = load_some(in_row<T>(args.in, h * args.in_stride + c), count);
        store_some(out_row<T>(args.out, h * args.out_stride + c), x * cosine + swapped(x) * sine,
                   count);
      }
    });
  });
}

// ---- SwiGLU

void swiglu(Elements a, Elements b, Elements out, int64_t begin, int64_t end) {
  by_type(a.is_bf16, [&](auto type) {
    using T = decltype(type);
    const T *gates = in_row<T>(a, begin), *ups = in_row<T>(b, begin);
    T* to = out_row<T>(out, begin);
    for_columns(end - begin, [&](int64_t c, int64_t count) {
      const Floats gate = load_some(gates + c, count);
      store_some(to + c, gate * sigmoid(gate) * load_some(ups + c, count), count);
    });
  });
}

void swiglu_gradient(Elements a, Elements b, Elements dy, Elements da, Elements db, int64_t begin,
                     int64_t end) {
  by_type(a.is_bf16, [&](auto type) {
    using T = decltype(type);
    const T *gates = in_row<T>(a, begin), *ups = in_row<T>(b, begin);
    const T* gradients = in_row<T>(dy, begin);
    T *to_gate = out_row<T>(da, begin), *to_up = out_row<T>(db, begin);
    for_columns(end - begin, [&](int64_t c, int64_t count) {
      const Floats gate = load_some(gates + c, count), s = sigmoid(gate);
      const Floats gradient = load_some(gradients + c, count) * s;
      store_some(to_up + c, gradient * gate, count);
      const Floats slope = 1.0f + gate * (1.0f - s);
      store_some(to_gate + c, gradient * load_some(ups + c, count) * slope, count);
    });
  });
}

// ---- softmax

/// Columns that are read twice from the first-level cache: for their maximum, for their exponents.
constexpr int64_t kSoftmaxChunk = 512;

/// As load_some, but the other lanes are -inf: no maximum, and next to nothing as a power of e.
template <class T>
inline Floats load_filled(const T* from, int64_t count) {
  if (count >= kWidth) return load(from);
  const Floats some = load_some(from, count);
  float lanes[kWidth];
  for (int64_t i = 0; i < kWidth; ++i) lanes[i] = i < count ? some[i] : -__builtin_inff();
  return load(lanes);
}

template <class T>
inline int64_t first_equal(const T* row, int64_t columns, float wanted) {
  for (int64_t c = 0; c < columns; c += kWidth) {
    const Floats value = load_filled(row + c, columns - c);
    for (int64_t i = 0; i < min_of(kWidth, columns - c); ++i) {
      if (value[i] == wanted) return c + i;
    }
  }
  return 0;
}

template <class T>
inline SoftmaxRow softmax_of(const T* row, int64_t columns) {
  SoftmaxRow result{.maximum = -__builtin_inff()};
  int64_t best_begin = 0;
  for (int64_t begin = 0; begin < columns; begin += kSoftmaxChunk) {
    const T* chunk = row + begin;
    const int64_t size = min_of(kSoftmaxChunk, columns - begin);
    Floats maxima = splat(-__builtin_inff()), totals = {};
    for_columns(size, [&](int64_t c, int64_t count) {
      const Floats x = load_filled(chunk + c, count);
      maxima = x > maxima ? x : maxima;
      totals += count == kWidth ? x : load_some(chunk + c, count);
    });
    const float maximum = max_of(maxima);
    if (maximum > result.maximum) {
      result.exp_sum *= exp(splat(result.maximum - maximum))[0];
      result.maximum = maximum;
      best_begin = begin;
    }
    result.exp_sum += sum_columns(size, [&](int64_t c, int64_t count) {
      return exp(load_filled(chunk + c, count) - result.maximum);
    });
    result.total += static_cast<double>(sum_of(totals));
  }
  result.best = best_begin + first_equal(row + best_begin, columns - best_begin, result.maximum);
  return result;
}

SoftmaxRow softmax_row(Elements row, int64_t columns) {
  SoftmaxRow result;
  by_type(row.is_bf16,
          [&](auto type) { result = softmax_of(in_row<decltype(type)>(row, 0), columns); });
  return result;
}

void softmax_gradient(Elements row, Elements out, int64_t columns, float log_sum, float scale,
                      float offset) {
  by_type(row.is_bf16, [&](auto type) {
    using T = decltype(type);
    const T* from = in_row<T>(row, 0);
    T* to = out_row<T>(out, 0);
    for_columns(columns, [&](int64_t c, int64_t count) {
      store_some(to + c, exp(load_some(from + c, count) - log_sum) * scale - offset, count);
    });
  });
}

}  // namespace
}  // namespace vgen::kernels
