// Cross entropy on CUDA devices: a block reads a row of logits once.
#include <cmath>

#include "vgen/kernels/detail/cuda_vectors.cuh"

namespace vgen::kernels {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;

/// Of some columns of a row.
struct Partial {
  float maximum, exp_sum, total;  ///< exp_sum: of exp(x - maximum)
  int64_t best;                   ///< the first column that has the maximum
};

__device__ Partial joined(const Partial& a, const Partial& b) {
  const float maximum = fmaxf(a.maximum, b.maximum);
  // Nothing but -inf: no difference of infinities.
  const float exp_sum = maximum == -INFINITY ? 0
                                             : a.exp_sum * __expf(a.maximum - maximum) +
                                                   b.exp_sum * __expf(b.maximum - maximum);
  const bool is_a = a.maximum > b.maximum || (a.maximum == b.maximum && a.best < b.best);
  return {maximum, exp_sum, a.total + b.total, is_a ? a.best : b.best};
}

__device__ Partial from_lane(const Partial& own, int offset) {
  return {__shfl_xor_sync(kAllLanes, own.maximum, offset),
          __shfl_xor_sync(kAllLanes, own.exp_sum, offset),
          __shfl_xor_sync(kAllLanes, own.total, offset),
          __shfl_xor_sync(kAllLanes, own.best, offset)};
}

__global__ void cross_entropy_kernel(const CudaCrossEntropy args) {
  __shared__ Partial of_warps[kWarps];
  const int64_t row = blockIdx.x, begin = row * args.columns;
  Partial own{-INFINITY, 0, 0, args.columns};
  for (int64_t c = static_cast<int64_t>(threadIdx.x) * kVector; c < args.columns;
       c += kThreads * kVector) {
    Vector x;
    load(args.logits, begin + c, x);
    float maximum = own.maximum;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      own.total += x[i];
      if (x[i] > maximum) {
        maximum = x[i];
        own.best = c + i;
      }
    }
    if (maximum > own.maximum) own.exp_sum *= __expf(own.maximum - maximum);
    own.maximum = maximum;
    if (maximum == -INFINITY && own.total == -INFINITY) continue;  // else one is NaN
#pragma unroll
    for (int i = 0; i < kVector; ++i) own.exp_sum += __expf(x[i] - maximum);
  }
  for (int offset = 16; offset > 0; offset /= 2) own = joined(own, from_lane(own, offset));
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = own;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kWarps; ++w) own = joined(own, of_warps[w]);
  const float log_sum = own.maximum + logf(own.exp_sum);
  const int64_t target = args.target[row];
  const bool is_class = target >= 0 && target < args.columns;
  float logit = NAN;
  if (is_class) {
    Vector x;
    load(args.logits, begin + target / kVector * kVector, x);
    for (int i = 0; i < kVector; ++i) {
      if (i == target % kVector) logit = x[i];
    }
  }
  const float plain = log_sum - logit;
  const float spread = log_sum - own.total / static_cast<float>(args.columns);
  args.log_sum[row] = log_sum;
  args.plain_loss[row] = plain;
  args.loss[row] =
      args.label_smoothing == 0 ? plain : plain + args.label_smoothing * (spread - plain);
  args.is_right[row] = own.best == target ? 1.0F : 0.0F;
}

__global__ void cross_entropy_gradient_kernel(const CudaCrossEntropyGradient args) {
  const int64_t row = blockIdx.x, begin = row * args.columns, target = args.target[row];
  const bool is_class = target >= 0 && target < args.columns;
  const float log_sum = args.log_sum[row], scale = is_class ? args.dloss[row] : NAN;
  const float of_target = 1 - args.label_smoothing;
  const float of_each = args.label_smoothing / static_cast<float>(args.columns);
  for (int64_t c = static_cast<int64_t>(threadIdx.x) * kVector; c < args.columns;
       c += kThreads * kVector) {
    Vector x;
    load(args.logits, begin + c, x);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float share = __expf(x[i] - log_sum) - of_each;
      x[i] = scale * (c + i == target ? share - of_target : share);
    }
    store(x, args.dlogits, begin + c);
  }
}

}  // namespace

void launch(const CudaCrossEntropy& args, cudaStream_t stream) {
  cross_entropy_kernel<<<static_cast<unsigned>(args.rows), kThreads, 0, stream>>>(args);
}

void launch(const CudaCrossEntropyGradient& args, cudaStream_t stream) {
  cross_entropy_gradient_kernel<<<static_cast<unsigned>(args.rows), kThreads, 0, stream>>>(args);
}

}  // namespace vgen::kernels
