// RMSNorm, modulated norms and gated sums on CUDA devices.
#include "vgen/kernels/detail/cuda_vectors.cuh"

namespace vgen::kernels {
namespace {

__global__ void __launch_bounds__(kMaxThreads) rms_norm_kernel(const CudaRmsNorm args) {
  __shared__ SumRoom<1> room;
  int turn = 0;
  const int64_t column = static_cast<int64_t>(threadIdx.x) * kVector;
  const bool has_columns = column < args.columns;
  Vector weight = {};
  if (has_columns) load({const_cast<float*>(args.weight)}, column, weight);
  for (int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    const int64_t index = row * args.columns + column;
    Vector x = {};
    if (has_columns) load(args.x, index, x);
    float sum[1] = {0};
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum[0] += x[i] * x[i];
    block_sum(sum, room, turn);
    const float rstd = rsqrtf(sum[0] / static_cast<float>(args.columns) + args.eps);
    if (threadIdx.x == 0) args.rstd[row] = rstd;
    if (!has_columns) continue;
#pragma unroll
    for (int i = 0; i < kVector; ++i) x[i] = rounded(x[i] * rstd, args.x.type) * weight[i];
    store(x, args.y, index);
  }
}

__global__ void __launch_bounds__(kMaxThreads)
    rms_norm_gradient_kernel(const CudaRmsNormGradient args) {
  __shared__ SumRoom<1> room;
  int turn = 0;
  const int64_t column = static_cast<int64_t>(threadIdx.x) * kVector;
  const bool has_columns = column < args.columns;
  Vector weight = {}, dweight = {};
  if (has_columns) load({const_cast<float*>(args.weight)}, column, weight);
  for (int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    const int64_t index = row * args.columns + column;
    Vector x = {}, dy = {};
    if (has_columns) {
      load(args.x, index, x);
      load(args.dy, index, dy);
    }
    const float rstd = args.rstd[row];
    float dot[1] = {0};
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      dweight[i] += dy[i] * rounded(x[i] * rstd, args.x.type);
      dy[i] *= weight[i];
      dot[0] += dy[i] * x[i];
    }
    block_sum(dot, room, turn);
    if (!has_columns) continue;
    const float pull = dot[0] * rstd * rstd / static_cast<float>(args.columns);
#pragma unroll
    for (int i = 0; i < kVector; ++i) x[i] = rstd * (dy[i] - x[i] * pull);
    store(x, args.dx, index);
  }
  if (has_columns) store(dweight, {args.dweight}, blockIdx.x * args.columns + column);
}

__global__ void __launch_bounds__(kMaxThreads) modulated_norm_kernel(const CudaModulatedNorm args) {
  __shared__ SumRoom<1> room;
  int turn = 0;
  const int64_t column = static_cast<int64_t>(threadIdx.x) * kVector;
  const bool has_columns = column < args.columns;
  const auto count = static_cast<float>(args.columns);
  const int64_t row = blockIdx.x, sample = row / args.length;
  const int64_t index = row * args.columns + column;
  Vector x = {};
  if (has_columns) load(args.x, index, x);
  float sum[1] = {0};
#pragma unroll
  for (int i = 0; i < kVector; ++i) sum[0] += x[i];
  block_sum(sum, room, turn);
  const float mean = sum[0] / count;
  sum[0] = 0;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    x[i] = has_columns ? x[i] - mean : 0.0F;
    sum[0] += x[i] * x[i];
  }
  block_sum(sum, room, turn);
  const float rstd = rsqrtf(sum[0] / count + args.eps);
  if (threadIdx.x == 0) {
    args.mean[row] = mean;
    args.rstd[row] = rstd;
  }
  if (!has_columns) return;
  Vector scale, shift;
  load(args.scale, sample, column, scale);
  load(args.shift, sample, column, shift);
#pragma unroll
  for (int i = 0; i < kVector; ++i) x[i] = x[i] * rstd * (1 + scale[i]) + shift[i];
  store(x, args.y, index);
}

/// Block (p, s) has every row p + k parts of sample s.
__global__ void __launch_bounds__(kMaxThreads)
    modulated_norm_gradient_kernel(const CudaModulatedNormGradient args) {
  __shared__ SumRoom<2> room;
  int turn = 0;
  const int64_t column = static_cast<int64_t>(threadIdx.x) * kVector;
  const bool has_columns = column < args.columns;
  const int64_t sample = blockIdx.y;
  Vector scale = {}, dscale = {}, dshift = {};
  if (has_columns) load(args.scale, sample, column, scale);
  for (int64_t l = blockIdx.x; l < args.length; l += gridDim.x) {
    const int64_t row = sample * args.length + l, index = row * args.columns + column;
    Vector x = {}, dy = {};
    if (has_columns) {
      load(args.x, index, x);
      load(args.dy, index, dy);
    }
    const float mean = args.mean[row], rstd = args.rstd[row];
    float sums[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      x[i] = (x[i] - mean) * rstd;
      dscale[i] += dy[i] * x[i];
      dshift[i] += dy[i];
      dy[i] *= 1 + scale[i];
      sums[0] += dy[i];
      sums[1] += dy[i] * x[i];
    }
    block_sum(sums, room, turn);
    if (!has_columns) continue;
    const float offset = sums[0] / static_cast<float>(args.columns);
    const float pull = sums[1] / static_cast<float>(args.columns);
#pragma unroll
    for (int i = 0; i < kVector; ++i) x[i] = rstd * (dy[i] - offset - x[i] * pull);
    store(x, args.dx, index);
  }
  if (!has_columns) return;
  const int64_t part = (sample * args.parts + blockIdx.x) * 2 * args.columns + column;
  store(dscale, {args.sums}, part);
  store(dshift, {args.sums}, part + args.columns);
}

__global__ void __launch_bounds__(kMaxThreads) gated_sum_kernel(const CudaGatedSum args) {
  const int64_t column = static_cast<int64_t>(threadIdx.x) * kVector, row = blockIdx.x;
  if (column >= args.columns) return;
  const int64_t index = row * args.columns + column;
  Vector x, branch, gate;
  load(args.x, index, x);
  load(args.branch, index, branch);
  load(args.gate, row / args.length, column, gate);
#pragma unroll
  for (int i = 0; i < kVector; ++i) x[i] += gate[i] * branch[i];
  store(x, args.out, index);
}

/// Rows as in modulated_norm_gradient_kernel.
__global__ void __launch_bounds__(kMaxThreads)
    gated_sum_gradient_kernel(const CudaGatedSumGradient args) {
  const int64_t column = static_cast<int64_t>(threadIdx.x) * kVector, sample = blockIdx.y;
  if (column >= args.columns) return;
  Vector gate, dgate = {};
  load(args.gate, sample, column, gate);
  for (int64_t l = blockIdx.x; l < args.length; l += gridDim.x) {
    const int64_t index = (sample * args.length + l) * args.columns + column;
    Vector branch, dy;
    load(args.branch, index, branch);
    load(args.dy, index, dy);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      dgate[i] += dy[i] * branch[i];
      dy[i] *= gate[i];
    }
    store(dy, args.dbranch, index);
  }
  store(dgate, {args.sums}, (sample * args.parts + blockIdx.x) * args.columns + column);
}

dim3 blocks_of(int64_t parts, int64_t samples) {
  return {static_cast<unsigned>(parts), static_cast<unsigned>(samples)};
}

}  // namespace

void launch(const CudaRmsNorm& args, cudaStream_t stream) {
  rms_norm_kernel<<<static_cast<unsigned>(args.rows), row_threads(args.columns), 0, stream>>>(args);
}

void launch(const CudaRmsNormGradient& args, cudaStream_t stream) {
  rms_norm_gradient_kernel<<<static_cast<unsigned>(args.parts), row_threads(args.columns), 0,
                             stream>>>(args);
}

void launch(const CudaModulatedNorm& args, cudaStream_t stream) {
  modulated_norm_kernel<<<static_cast<unsigned>(args.samples * args.length),
                          row_threads(args.columns), 0, stream>>>(args);
}

void launch(const CudaModulatedNormGradient& args, cudaStream_t stream) {
  modulated_norm_gradient_kernel<<<blocks_of(args.parts, args.samples), row_threads(args.columns),
                                   0, stream>>>(args);
}

void launch(const CudaGatedSum& args, cudaStream_t stream) {
  gated_sum_kernel<<<static_cast<unsigned>(args.samples * args.length), row_threads(args.columns),
                     0, stream>>>(args);
}

void launch(const CudaGatedSumGradient& args, cudaStream_t stream) {
  gated_sum_gradient_kernel<<<blocks_of(args.parts, args.samples), row_threads(args.columns), 0,
                              stream>>>(args);
}

}  // namespace vgen::kernels
