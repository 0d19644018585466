#pragma once
// What models do to rows of activations, on CUDA devices: each function puts its kernels on a
// stream. No LibTorch in here; cuda_kernels.cpp makes the arguments.
//
// A thread has eight columns of a row side by side, and a block has the row: columns are a multiple
// of 8, at most 8192 where they are summed over, and all rows begin at multiples of 16 bytes.
// Arithmetic is in float32, rounded once. Sums over rows are left in parts, one of each block, in
// an order that does not change: two runs give the same bits.

#include <cuda_runtime_api.h>

#include <cstdint>

namespace vgen::kernels {

inline constexpr int64_t kVectorColumns = 8;

/// Whole warps with a thread for every eight columns.
inline unsigned row_threads(int64_t columns) {
  return static_cast<unsigned>((columns / kVectorColumns + 31) / 32 * 32);
}

enum class Number { kFloat32, kBFloat16, kFloat16 };

/// Numbers in the memory of the device.
struct Numbers {
  void* data = nullptr;
  Number type = Number::kFloat32;
};

/// One factor of each column for every sample.
struct Factors {
  Numbers numbers;
  int64_t sample_stride = 0;
};

/// y += addend of each column, and residual where there is one.
struct CudaAddToRows {
  int64_t rows = 0, columns = 0;
  Numbers y, residual;            ///< residual.data null: none
  const float* addend = nullptr;  ///< (columns)
};
void launch(const CudaAddToRows& args, cudaStream_t stream);

/// Sums of each column.
struct CudaColumnSums {
  int64_t rows = 0, columns = 0;
  Numbers x;
  int64_t parts = 1;
  float* sums = nullptr;  ///< (parts, columns)
};
void launch(const CudaColumnSums& args, cudaStream_t stream);

/// Channels-last activations: samples of pixels of channels, which are a multiple of 8 and of
/// groups. Two sums of each channel are left in parts, (samples, parts, 2, channels).
struct CudaImages {
  int64_t samples = 0, pixels = 0, channels = 0, groups = 1;
};
/// How the pixels of a sample are shared by blocks; for the sums each leaves a part of its own.
int64_t group_norm_parts(const CudaImages& images, int64_t processors);

/// Sums of x - p and (x - p)^2, p the channel's first value in the sample; then the mean and
/// 1 / sqrt(variance + eps) of each group. Two kernels.
struct CudaGroupNormStats {
  CudaImages images;
  float eps = 0;
  Numbers x;
  int64_t parts = 1;
  float* sums = nullptr;
  float *mean = nullptr, *rstd = nullptr;  ///< (samples, groups)
};
void launch(const CudaGroupNormStats& args, cudaStream_t stream);

struct CudaGroupNormApply {
  CudaImages images;
  int64_t parts = 1;
  Numbers x, y;
  const float *mean = nullptr, *rstd = nullptr, *weight = nullptr, *bias = nullptr;
  bool has_silu = false;
};
void launch(const CudaGroupNormApply& args, cudaStream_t stream);

/// With n = (x - mean) rstd and dt the gradient to weight n + bias: sums of dt and of dt n; then
/// dx = rstd (weight dt - mean(weight dt) - n mean(weight dt n)), means over the group. Three
/// kernels.
struct CudaGroupNormGradient {
  CudaImages images;
  int64_t parts = 1;
  Numbers x, dy, dx;
  const float *mean = nullptr, *rstd = nullptr, *weight = nullptr, *bias = nullptr;
  bool has_silu = false;
  float* sums = nullptr;
  float* totals = nullptr;  ///< (samples, 2, channels): the sums of all parts
  float* means = nullptr;   ///< (samples, 2, groups)
};
void launch(const CudaGroupNormGradient& args, cudaStream_t stream);

struct CudaRmsNorm {
  int64_t rows = 0, columns = 0;
  float eps = 0;
  Numbers x, y;
  const float* weight = nullptr;  ///< (columns)
  float* rstd = nullptr;          ///< (rows)
};
void launch(const CudaRmsNorm& args, cudaStream_t stream);

struct CudaRmsNormGradient {
  int64_t rows = 0, columns = 0;
  Numbers x, dy, dx;
  const float *weight = nullptr, *rstd = nullptr;
  int64_t parts = 1;
  float* dweight = nullptr;  ///< (parts, columns)
};
void launch(const CudaRmsNormGradient& args, cudaStream_t stream);

struct CudaModulatedNorm {
  int64_t samples = 0, length = 0, columns = 0;
  float eps = 0;
  Numbers x, y;
  Factors scale, shift;
  float *mean = nullptr, *rstd = nullptr;  ///< (samples * length)
};
void launch(const CudaModulatedNorm& args, cudaStream_t stream);

struct CudaModulatedNormGradient {
  int64_t samples = 0, length = 0, columns = 0;
  Numbers x, dy, dx;
  Factors scale;
  const float *mean = nullptr, *rstd = nullptr;
  int64_t parts = 1;      ///< of each sample
  float* sums = nullptr;  ///< (samples, parts, 2, columns): for the scale, for the shift
};
void launch(const CudaModulatedNormGradient& args, cudaStream_t stream);

struct CudaGatedSum {
  int64_t samples = 0, length = 0, columns = 0;
  Numbers x, branch, out;
  Factors gate;
};
void launch(const CudaGatedSum& args, cudaStream_t stream);

struct CudaGatedSumGradient {
  int64_t samples = 0, length = 0, columns = 0;
  Numbers branch, dy, dbranch;
  Factors gate;
  int64_t parts = 1;      ///< of each sample
  float* sums = nullptr;  ///< (samples, parts, columns)
};
void launch(const CudaGatedSumGradient& args, cudaStream_t stream);

/// Strides in elements, multiples of 8: where rows of a and b begin.
struct CudaSwiglu {
  int64_t rows = 0, columns = 0, a_stride = 0, b_stride = 0;
  Numbers a, b, out;
};
void launch(const CudaSwiglu& args, cudaStream_t stream);

struct CudaSwigluGradient {
  int64_t count = 0;  ///< a multiple of 8
  Numbers a, b, dy, da, db;
};
void launch(const CudaSwigluGradient& args, cudaStream_t stream);

/// Heads whose channels lie side by side; strides in elements, multiples of 8.
struct HeadSource {
  const void* data = nullptr;
  int64_t batch_stride = 0, position_stride = 0, head_stride = 0;
  int64_t heads = 0;
};
/// Copies heads from up to three sources, one behind the other, and turns the first of them.
struct CudaRotate {
  int64_t batch = 0, length = 0, head_dim = 0;
  HeadSource sources[3];
  Number type = Number::kFloat32;  ///< of all heads
  void* out = nullptr;             ///< (batch, length, heads of all sources, head_dim)
  int64_t num_turned = 0;
  bool is_inverse = false;      ///< by the opposite angles
  const float* rope = nullptr;  ///< (length, head_dim / 2, 2): cosine, sine
};
void launch(const CudaRotate& args, cudaStream_t stream);

/// head_dim: 8 times a power of two, at most 256.
struct CudaUnitHeads {
  int64_t rows = 0, heads = 0, head_dim = 0;
  Number type = Number::kFloat32;
  const void* qkv = nullptr;                                ///< (rows, 3, heads, head_dim)
  void *query = nullptr, *key = nullptr, *value = nullptr;  ///< (rows, heads, head_dim)
  const float* scale = nullptr;                             ///< (heads)
  float* rnorm = nullptr;                                   ///< (rows, 2, heads)
};
void launch(const CudaUnitHeads& args, cudaStream_t stream);

struct CudaUnitHeadsGradient {
  int64_t rows = 0, heads = 0, head_dim = 0;
  Number type = Number::kFloat32;
  const void *qkv = nullptr, *dquery = nullptr, *dkey = nullptr, *dvalue = nullptr;
  void* dqkv = nullptr;
  const float *scale = nullptr, *rnorm = nullptr;
  int64_t parts = 1;
  float* dscale = nullptr;  ///< (parts, heads)
};
void launch(const CudaUnitHeadsGradient& args, cudaStream_t stream);

/// What kernels/cached_attention.h says. head_dim: 8 times a power of two, at most 256.
struct CudaCachedAttention {
  int64_t rows = 0, heads = 0, kv_heads = 0, head_dim = 0, length = 0;
  Number type = Number::kFloat32;
  const void* qkv = nullptr;    ///< (rows, heads + 2 kv_heads, head_dim)
  const float* rope = nullptr;  ///< (length, head_dim / 2, 2)
  const int64_t *slot = nullptr, *position = nullptr, *first = nullptr;  ///< (rows)
  void *key = nullptr, *value = nullptr;  ///< (slots, kv_heads, length, head_dim)
  void* out = nullptr;                    ///< (rows, heads, head_dim)
};
void launch(const CudaCachedAttention& args, cudaStream_t stream);

/// Any number of columns that is a multiple of 8. A target that is no class makes the losses of its
/// row NaN.
struct CudaCrossEntropy {
  int64_t rows = 0, columns = 0;
  float label_smoothing = 0;
  Numbers logits;
  const int64_t* target = nullptr;
  float *loss = nullptr, *plain_loss = nullptr, *is_right = nullptr, *log_sum = nullptr;
};
void launch(const CudaCrossEntropy& args, cudaStream_t stream);

struct CudaCrossEntropyGradient {
  int64_t rows = 0, columns = 0;
  float label_smoothing = 0;
  Numbers logits, dlogits;
  const int64_t* target = nullptr;
  const float *log_sum = nullptr, *dloss = nullptr;
};
void launch(const CudaCrossEntropyGradient& args, cudaStream_t stream);

}  // namespace vgen::kernels
