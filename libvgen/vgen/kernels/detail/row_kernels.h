#pragma once
// The inner loops of what a transformer does to rows of activations when it is trained, one table
// of them per instruction set. All are single-threaded and allocate nothing; ranges of rows are
// independent of each other. A sum has the order of its row, whatever the range. No LibTorch in
// here.

#include <cstdint>

#include "vgen/kernels/cpu_isa.h"
#include "vgen/kernels/detail/elements.h"

namespace vgen::kernels {

struct RmsNormArgs {
  int64_t columns = 0;
  float eps = 0;
  Elements x, y;                  ///< (rows, columns); y has the type of x or is float32
  const float* weight = nullptr;  ///< (columns)
  float* rstd = nullptr;          ///< (rows): 1 / sqrt(mean(x^2) + eps)
};

struct RmsNormGradientArgs {
  int64_t columns = 0;
  Elements x, dy, dx;  ///< (rows, columns); dx has the type of x, dy that of the result
  const float* weight = nullptr;
  const float* rstd = nullptr;
};

/// Turns the pairs of `heads` heads at one position.
struct RotateArgs {
  Elements in, out;                       ///< of one type
  int64_t in_stride = 0, out_stride = 0;  ///< elements from head to head
  int64_t heads = 0, head_dim = 0;
  const float* rope = nullptr;  ///< (head_dim / 2, 2): cosine, sine
  bool is_inverse = false;      ///< by the opposite angles
};

struct SoftmaxRow {
  float maximum = 0;
  float exp_sum = 0;  ///< of exp(x - maximum)
  double total = 0;   ///< of x
  int64_t best = 0;   ///< the first column that has the maximum; 0 if none has
};

/// Rows of samples, `sample_rows` each; factors are (samples, columns).
struct ModulatedNormArgs {
  int64_t columns = 0, sample_rows = 1;
  float eps = 0;
  Elements x, y;
  const float *scale = nullptr, *shift = nullptr;
  float *mean = nullptr, *rstd = nullptr;  ///< (rows)
};
struct ModulatedNormGradientArgs {
  int64_t columns = 0, sample_rows = 1;
  Elements x, dy, dx;  ///< dx has the type of x
  const float *scale = nullptr, *mean = nullptr, *rstd = nullptr;
};
struct GatedSumArgs {
  int64_t columns = 0, sample_rows = 1;
  Elements x, branch, out;  ///< out has the type of x
  const float* gate = nullptr;
};
struct GatedSumGradientArgs {
  int64_t columns = 0, sample_rows = 1;
  Elements branch, dy, dbranch;  ///< dbranch has the type of the branch
  const float* gate = nullptr;
};

/// Of one type: (rows, 3, heads, head_dim) and thrice (rows, heads, head_dim).
struct UnitHeadsArgs {
  int64_t heads = 0, head_dim = 0;
  Elements qkv, query, key, value;
  const float* scale = nullptr;  ///< (heads), of queries
  float* rnorm = nullptr;        ///< (rows, 2, heads): 1 / length of queries and keys
};
struct UnitHeadsGradientArgs {
  int64_t heads = 0, head_dim = 0;
  Elements qkv, dquery, dkey, dvalue, dqkv;
  const float *scale = nullptr, *rnorm = nullptr;
};

inline constexpr int64_t kDropoutSpan = 64;  ///< elements of 16 counters, see dropout.h
struct DropoutArgs {
  int64_t count = 0;
  Elements x, out;  ///< of one type
  uint64_t key = 0;
  uint32_t threshold = 0;  ///< words below it drop
  float scale = 1;
};

struct RowKernels {
  CpuIsa isa;

  /// y = cast(x rstd) weight of rows [begin, end), the cast to the type of x. Writes rstd.
  void (*rms_norm)(const RmsNormArgs& args, int64_t begin, int64_t end);
  /// dx of rows [begin, end); weight_gradient (columns) becomes the sum over them.
  void (*rms_norm_gradient)(const RmsNormGradientArgs& args, int64_t begin, int64_t end,
                            float* weight_gradient);

  void (*rotate)(const RotateArgs& args);

  /// out = silu(a) b, elements [begin, end), all of one type.
  void (*swiglu)(Elements a, Elements b, Elements out, int64_t begin, int64_t end);
  /// da and db, also of that type.
  void (*swiglu_gradient)(Elements a, Elements b, Elements dy, Elements da, Elements db,
                          int64_t begin, int64_t end);

  SoftmaxRow (*softmax_row)(Elements row, int64_t columns);
  /// out = scale exp(x - log_sum) - offset, of the type of the row.
  void (*softmax_gradient)(Elements row, Elements out, int64_t columns, float log_sum, float scale,
                           float offset);

  /// y = norm(x) (1 + scale) + shift of rows [begin, end). Writes mean and rstd.
  void (*modulated_norm)(const ModulatedNormArgs& args, int64_t begin, int64_t end);
  /// dx of rows [begin, end) of one sample; the others (columns) become the sums over them.
  void (*modulated_norm_gradient)(const ModulatedNormGradientArgs& args, int64_t begin, int64_t end,
                                  float* scale_gradient, float* shift_gradient);
  /// out = x + gate branch of rows [begin, end).
  void (*gated_sum)(const GatedSumArgs& args, int64_t begin, int64_t end);
  /// dbranch of rows [begin, end) of one sample; the other (columns) becomes the sum over them.
  void (*gated_sum_gradient)(const GatedSumGradientArgs& args, int64_t begin, int64_t end,
                             float* gate_gradient);

  /// Queries scale q / |q|, keys k / |k|, values of rows [begin, end). Writes rnorm.
  void (*unit_heads)(const UnitHeadsArgs& args, int64_t begin, int64_t end);
  /// dqkv of rows [begin, end); scale_gradient (heads) becomes the sum over them.
  void (*unit_heads_gradient)(const UnitHeadsGradientArgs& args, int64_t begin, int64_t end,
                              float* scale_gradient);

  /// By its tanh formula, elements [begin, end), all of one type.
  void (*gelu)(Elements x, Elements out, int64_t begin, int64_t end);
  void (*gelu_gradient)(Elements x, Elements dy, Elements dx, int64_t begin, int64_t end);

  /// The spans [begin, end) of kDropoutSpan elements.
  void (*dropout)(const DropoutArgs& args, int64_t begin, int64_t end);
};

/// The best table that is not above `isa` and that this processor runs.
const RowKernels& row_kernels(CpuIsa isa);

/// The sets that this build has; null where the compiler's target has no such instructions.
const RowKernels* row_kernels_portable();
const RowKernels* row_kernels_avx2();
const RowKernels* row_kernels_avx512();

}  // namespace vgen::kernels
