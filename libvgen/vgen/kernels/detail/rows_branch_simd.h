#pragma once
// What a transformer does around its branches: modulated norms, gated sums, heads of unit length,
// GELU; see row_kernels.h. Included by rows_<isa>.cpp.
#include "vgen/kernels/detail/rows_simd.h"

namespace vgen::kernels {
namespace {

inline void clear(float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = 0;
}

inline void add_to(float* sums, int64_t c, Floats value, int64_t count) {
  store_some(sums + c, load_some(sums + c, count) + value, count);
}

// ---- modulated norm

template <class X, class Y>
inline void modulated_norm_row(const X* x, const float* scale, const float* shift, Y* y,
                               int64_t columns, float eps, float& mean, float& rstd) {
  const auto size = static_cast<float>(columns);
  mean = sum_columns(columns, [&](int64_t c, int64_t count) { return load_some(x + c, count); }) /
         size;
  const Floats none = {}, centre = splat(mean);
  const float squares = sum_columns(columns, [&](int64_t c, int64_t count) {
    Floats value = load_some(x + c, count) - centre;
    if (count < kWidth) {  // the lanes beyond the row
      for (int64_t i = count; i < kWidth; ++i) value[i] = none[i];
    }
    return value * value;
  });
  rstd = 1.0f / __builtin_sqrtf(squares / size + eps);
  for_columns(columns, [&](int64_t c, int64_t count) {
    const Floats normed = (load_some(x + c, count) - centre) * rstd;
    const Floats factor = load_some(scale + c, count) + 1.0f;
    store_some(y + c, normed * factor + load_some(shift + c, count), count);
  });
}

void modulated_norm(const ModulatedNormArgs& args, int64_t begin, int64_t end) {
  const int64_t columns = args.columns;
  by_type(args.x.is_bf16, [&](auto x_type) {
    by_type(args.y.is_bf16, [&](auto y_type) {
      for (int64_t r = begin; r < end; ++r) {
        const int64_t sample = r / args.sample_rows * columns;
        modulated_norm_row(in_row<decltype(x_type)>(args.x, r * columns), args.scale + sample,
                           args.shift + sample, out_row<decltype(y_type)>(args.y, r * columns),
                           columns, args.eps, args.mean[r], args.rstd[r]);
      }
    });
  });
}

/// With n = (x - mean) rstd and g = dy (1 + scale): dx = rstd (g - mean(g) - n mean(g n)),
/// dscale += dy n, dshift += dy.
template <class X, class Y>
inline void modulated_norm_gradient_row(const X* x, const Y* dy, const float* scale, float mean,
                                        float rstd, X* dx, float* scale_gradient,
                                        float* shift_gradient, int64_t columns) {
  Floats sums = {}, products = {};
  for_columns(columns, [&](int64_t c, int64_t count) {
    const Floats gradient = load_some(dy + c, count);  // zero beyond the row
    const Floats normed = (load_some(x + c, count) - mean) * rstd;
    add_to(shift_gradient, c, gradient, count);
    add_to(scale_gradient, c, gradient * normed, count);
    const Floats inner = gradient * (load_some(scale + c, count) + 1.0f);
    sums += inner;
    products += inner * normed;
  });
  const float mean_sum = sum_of(sums) / static_cast<float>(columns);
  const float mean_product = sum_of(products) / static_cast<float>(columns);
  for_columns(columns, [&](int64_t c, int64_t count) {
    const Floats normed = (load_some(x + c, count) - mean) * rstd;
    const Floats inner = load_some(dy + c, count) * (load_some(scale + c, count) + 1.0f);
    store_some(dx + c, (inner - mean_sum - normed * mean_product) * rstd, count);
  });
}

void modulated_norm_gradient(const ModulatedNormGradientArgs& args, int64_t begin, int64_t end,
                             float* scale_gradient, float* shift_gradient) {
  const int64_t columns = args.columns;
  clear(scale_gradient, columns);
  clear(shift_gradient, columns);
  by_type(args.x.is_bf16, [&](auto x_type) {
    by_type(args.dy.is_bf16, [&](auto y_type) {
      using X = decltype(x_type);
      for (int64_t r = begin; r < end; ++r) {
        modulated_norm_gradient_row(
            in_row<X>(args.x, r * columns), in_row<decltype(y_type)>(args.dy, r * columns),
            args.scale + r / args.sample_rows * columns, args.mean[r], args.rstd[r],
            out_row<X>(args.dx, r * columns), scale_gradient, shift_gradient, columns);
      }
    });
  });
}

// ---- gated sum

void gated_sum(const GatedSumArgs& args, int64_t begin, int64_t end) {
  const int64_t columns = args.columns;
  by_type(args.x.is_bf16, [&](auto x_type) {
    by_type(args.branch.is_bf16, [&](auto branch_type) {
      using X = decltype(x_type);
      for (int64_t r = begin; r < end; ++r) {
        const X* x = in_row<X>(args.x, r * columns);
        const auto* branch = in_row<decltype(branch_type)>(args.branch, r * columns);
        const float* gate = args.gate + r / args.sample_rows * columns;
        X* out = out_row<X>(args.out, r * columns);
        for_columns(columns, [&](int64_t c, int64_t count) {
          const Floats added = load_some(branch + c, count) * load_some(gate + c, count);
          store_some(out + c, load_some(x + c, count) + added, count);
        });
      }
    });
  });
}

void gated_sum_gradient(const GatedSumGradientArgs& args, int64_t begin, int64_t end,
                        float* gate_gradient) {
  const int64_t columns = args.columns;
  clear(gate_gradient, columns);
  by_type(args.branch.is_bf16, [&](auto branch_type) {
    by_type(args.dy.is_bf16, [&](auto y_type) {
      using Branch = decltype(branch_type);
      for (int64_t r = begin; r < end; ++r) {
        const Branch* branch = in_row<Branch>(args.branch, r * columns);
        const auto* dy = in_row<decltype(y_type)>(args.dy, r * columns);
        const float* gate = args.gate + r / args.sample_rows * columns;
        Branch* dbranch = out_row<Branch>(args.dbranch, r * columns);
        for_columns(columns, [&](int64_t c, int64_t count) {
          const Floats gradient = load_some(dy + c, count);
          add_to(gate_gradient, c, gradient * load_some(branch + c, count), count);
          store_some(dbranch + c, gradient * load_some(gate + c, count), count);
        });
      }
    });
  });
}

// ---- heads of unit length

constexpr float kLeastLength = 1e-12f;

/// out = x scale / |x|. Returns 1 / |x|.
template <class T>
inline float unit_head(const T* x, float scale, T* out, int64_t head_dim) {
  const float squares = sum_columns(head_dim, [&](int64_t c, int64_t count) {
    const Floats value = load_some(x + c, count);
    return value * value;
  });
  const float length = __builtin_sqrtf(squares);
  const float rnorm = 1.0f / (length > kLeastLength ? length : kLeastLength);
  for_columns(head_dim, [&](int64_t c, int64_t count) {
    store_some(out + c, load_some(x + c, count) * (rnorm * scale), count);
  });
  return rnorm;
}

void unit_heads(const UnitHeadsArgs& args, int64_t begin, int64_t end) {
  const int64_t heads = args.heads, dim = args.head_dim, columns = heads * dim;
  by_type(args.qkv.is_bf16, [&](auto type) {
    using T = decltype(type);
    for (int64_t r = begin; r < end; ++r) {
      const T* from = in_row<T>(args.qkv, 3 * r * columns);
      T *query = out_row<T>(args.query, r * columns), *key = out_row<T>(args.key, r * columns);
      float* rnorm = args.rnorm + 2 * r * heads;
      for (int64_t h = 0; h < heads; ++h) {
        rnorm[h] = unit_head(from + h * dim, args.scale[h], query + h * dim, dim);
        rnorm[heads + h] = unit_head(from + columns + h * dim, 1, key + h * dim, dim);
      }
      __builtin_memcpy(out_row<T>(args.value, r * columns), from + 2 * columns,
                       static_cast<size_t>(columns) * sizeof(T));
    }
  });
}

/// With u = x / |x|: dx = scale / |x| (dy - u (u dy)). Returns u dy, the gradient to the scale.
template <class T>
inline float unit_head_gradient(const T* x, const T* dy, float scale, float rnorm, T* dx,
                                int64_t head_dim) {
  const float product = rnorm * sum_columns(head_dim, [&](int64_t c, int64_t count) {
                          return load_some(x + c, count) * load_some(dy + c, count);
                        });
  // Below the least length the divisor does not change with x.
  const float along = rnorm < 1 / kLeastLength ? product * rnorm : 0.0f;
  for_columns(head_dim, [&](int64_t c, int64_t count) {
    const Floats across = load_some(dy + c, count) - load_some(x + c, count) * along;
    store_some(dx + c, across * (scale * rnorm), count);
  });
  return product;
}

void unit_heads_gradient(const UnitHeadsGradientArgs& args, int64_t begin, int64_t end,
                         float* scale_gradient) {
  const int64_t heads = args.heads, dim = args.head_dim, columns = heads * dim;
  clear(scale_gradient, heads);
  by_type(args.qkv.is_bf16, [&](auto type) {
    using T = decltype(type);
    for (int64_t r = begin; r < end; ++r) {
      const T* from = in_row<T>(args.qkv, 3 * r * columns);
      const T* dquery = in_row<T>(args.dquery, r * columns);
      const T* dkey = in_row<T>(args.dkey, r * columns);
      const float* rnorm = args.rnorm + 2 * r * heads;
      T* to = out_row<T>(args.dqkv, 3 * r * columns);
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t at = h * dim;
        scale_gradient[h] +=
            unit_head_gradient(from + at, dquery + at, args.scale[h], rnorm[h], to + at, dim);
        unit_head_gradient(from + columns + at, dkey + at, 1, rnorm[heads + h], to + columns + at,
                           dim);
      }
      __builtin_memcpy(to + 2 * columns, in_row<T>(args.dvalue, r * columns),
                       static_cast<size_t>(columns) * sizeof(T));
    }
  });
}

// ---- GELU by tanh: x sigmoid(u), u = 2 sqrt(2 / pi) (x + 0.044715 x^3)

constexpr float kGeluLinear = 1.5957691216f, kGeluCubic = kGeluLinear * 0.044715f;

void gelu(Elements x, Elements out, int64_t begin, int64_t end) {
  by_type(x.is_bf16, [&](auto type) {
    using T = decltype(type);
    const T* from = in_row<T>(x, begin);
    T* to = out_row<T>(out, begin);
    for_columns(end - begin, [&](int64_t c, int64_t count) {
      const Floats v = load_some(from + c, count);
      store_some(to + c, v * sigmoid(v * (kGeluLinear + kGeluCubic * v * v)), count);
    });
  });
}

void gelu_gradient(Elements x, Elements dy, Elements dx, int64_t begin, int64_t end) {
  by_type(x.is_bf16, [&](auto type) {
    using T = decltype(type);
    const T *from = in_row<T>(x, begin), *gradients = in_row<T>(dy, begin);
    T* to = out_row<T>(dx, begin);
    for_columns(end - begin, [&](int64_t c, int64_t count) {
      const Floats v = load_some(from + c, count), square = v * v;
      const Floats s = sigmoid(v * (kGeluLinear + kGeluCubic * square));
      const Floats slope = v * (kGeluLinear + 3 * kGeluCubic * square);
      store_some(to + c, load_some(gradients + c, count) * s * (1.0f + slope * (1.0f - s)), count);
    });
  });
}

}  // namespace
}  // namespace vgen::kernels
