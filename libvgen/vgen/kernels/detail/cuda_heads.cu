// SwiGLU, rotary positions and heads of unit length on CUDA devices.
#include <algorithm>

#include "vgen/kernels/detail/cuda_vectors.cuh"

namespace vgen::kernels {
namespace {

constexpr int64_t kThreads = 256;

/// Of kernels whose threads go on where there are more columns.
unsigned loop_threads(int64_t columns) {
  return row_threads(std::min(columns, kMaxThreads * kVectorColumns));
}

unsigned blocks_for(int64_t vectors) {
  return static_cast<unsigned>((vectors + kThreads - 1) / kThreads);
}

__device__ int64_t own_vector() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

/// A block has a row.
__global__ void __launch_bounds__(kMaxThreads) swiglu_kernel(const CudaSwiglu args) {
  const int64_t row = blockIdx.x;
  for (int64_t c = static_cast<int64_t>(threadIdx.x) * kVector; c < args.columns;
       c += static_cast<int64_t>(blockDim.x) * kVector) {
    Vector a, b;
    load(args.a, row * args.a_stride + c, a);
    load(args.b, row * args.b_stride + c, b);
#pragma unroll
    for (int i = 0; i < kVector; ++i) a[i] *= sigmoid(a[i]) * b[i];
    store(a, args.out, row * args.columns + c);
  }
}

__global__ void swiglu_gradient_kernel(const CudaSwigluGradient args) {
  const int64_t index = own_vector() * kVector;
  if (index >= args.count) return;
  Vector a, b, dy;
  load(args.a, index, a);
  load(args.b, index, b);
  load(args.dy, index, dy);
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const float share = sigmoid(a[i]), gate = a[i] * share;
    a[i] = dy[i] * b[i] * share * (1 + a[i] - gate);
    b[i] = dy[i] * gate;
  }
  store(a, args.da, index);
  store(b, args.db, index);
}

/// A block has a position.
__global__ void __launch_bounds__(kMaxThreads) rotate_kernel(const CudaRotate args, int heads) {
  const int64_t row = blockIdx.x, sample = row / args.length, position = row % args.length;
  const int head_dim = static_cast<int>(args.head_dim), width = heads * head_dim;
  for (int c = static_cast<int>(threadIdx.x) * kVector; c < width;
       c += static_cast<int>(blockDim.x) * kVector) {
    const int head = c / head_dim, channel = c % head_dim;
    int64_t first = 0;
    const HeadSource* source = args.sources;
    while (head >= first + source->heads) first += (source++)->heads;
    Vector x;
    load({const_cast<void*>(source->data), args.type},
         sample * source->batch_stride + position * source->position_stride +
             (head - first) * source->head_stride + channel,
         x);
    if (head < args.num_turned) {
      Vector rope;  // of four pairs
      load({const_cast<float*>(args.rope)}, position * head_dim + channel, rope);
      turn(x, rope, args.is_inverse);
    }
    store(x, {args.out, args.type}, row * width + c);
  }
}

/// A block has a row, a thread the same channels of its query, key and value.
__global__ void __launch_bounds__(kMaxThreads) unit_heads_kernel(const CudaUnitHeads args) {
  const int64_t width = args.heads * args.head_dim, row = blockIdx.x;
  const int64_t channel = static_cast<int64_t>(threadIdx.x) * kVector;
  const bool has_channels = channel < width;
  const int64_t head = channel / args.head_dim;
  const int threads = static_cast<int>(args.head_dim) / kVector;
  void* const outs[2] = {args.query, args.key};
  for (int part = 0; part < 2; ++part) {
    Vector x = {};
    if (has_channels) {
      load({const_cast<void*>(args.qkv), args.type}, (row * 3 + part) * width + channel, x);
    }
    const float length = sqrtf(head_sum(dot(x, x), threads));
    if (!has_channels) continue;
    const float rnorm = 1 / fmaxf(length, 1e-12F);
    if (channel % args.head_dim == 0) args.rnorm[(row * 2 + part) * args.heads + head] = rnorm;
    const float factor = part == 0 ? args.scale[head] * rnorm : rnorm;
#pragma unroll
    for (int i = 0; i < kVector; ++i) x[i] *= factor;
    store(x, {outs[part], args.type}, row * width + channel);
  }
  if (!has_channels) return;
  Vector value;
  load({const_cast<void*>(args.qkv), args.type}, (row * 3 + 2) * width + channel, value);
  store(value, {args.value, args.type}, row * width + channel);
}

__global__ void __launch_bounds__(kMaxThreads)
    unit_heads_gradient_kernel(const CudaUnitHeadsGradient args) {
  const int64_t width = args.heads * args.head_dim;
  const int64_t channel = static_cast<int64_t>(threadIdx.x) * kVector;
  const bool has_channels = channel < width;
  const int64_t head = channel / args.head_dim;
  const int threads = static_cast<int>(args.head_dim) / kVector;
  const float scale = has_channels ? args.scale[head] : 0.0F;
  const void* const gradients[2] = {args.dquery, args.dkey};
  const Numbers qkv{const_cast<void*>(args.qkv), args.type}, dqkv{args.dqkv, args.type};
  float dscale = 0;
  for (int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    for (int part = 0; part < 2; ++part) {
      const int64_t index = (row * 3 + part) * width + channel;
      Vector x = {}, dy = {};
      float rnorm = 0;
      if (has_channels) {
        load(qkv, index, x);
        load({const_cast<void*>(gradients[part]), args.type}, row * width + channel, dy);
        rnorm = args.rnorm[(row * 2 + part) * args.heads + head];
      }
      // A vector too short for its length has a factor of its own that does not change with it.
      const bool is_short = rnorm >= 1e12F;
#pragma unroll
      for (int i = 0; i < kVector; ++i) x[i] *= rnorm;
      const float along = head_sum(dot(x, dy), threads);
      if (!has_channels) continue;
      if (part == 0) dscale += along;
      const float factor = part == 0 ? scale * rnorm : rnorm;
#pragma unroll
      for (int i = 0; i < kVector; ++i) x[i] = factor * (dy[i] - (is_short ? 0.0F : along * x[i]));
      store(x, dqkv, index);
    }
    if (!has_channels) continue;
    Vector dvalue;
    load({const_cast<void*>(args.dvalue), args.type}, row * width + channel, dvalue);
    store(dvalue, dqkv, (row * 3 + 2) * width + channel);
  }
  if (has_channels && channel % args.head_dim == 0) {
    args.dscale[blockIdx.x * args.heads + head] = dscale;
  }
}

}  // namespace

void launch(const CudaSwiglu& args, cudaStream_t stream) {
  swiglu_kernel<<<static_cast<unsigned>(args.rows), loop_threads(args.columns), 0, stream>>>(args);
}

void launch(const CudaSwigluGradient& args, cudaStream_t stream) {
  swiglu_gradient_kernel<<<blocks_for(args.count / kVector), kThreads, 0, stream>>>(args);
}

void launch(const CudaRotate& args, cudaStream_t stream) {
  int64_t heads = 0;
  for (const HeadSource& source : args.sources) heads += source.heads;
  rotate_kernel<<<static_cast<unsigned>(args.batch * args.length),
                  loop_threads(heads * args.head_dim), 0, stream>>>(args, static_cast<int>(heads));
}

void launch(const CudaUnitHeads& args, cudaStream_t stream) {
  unit_heads_kernel<<<static_cast<unsigned>(args.rows), row_threads(args.heads * args.head_dim), 0,
                      stream>>>(args);
}

void launch(const CudaUnitHeadsGradient& args, cudaStream_t stream) {
  unit_heads_gradient_kernel<<<static_cast<unsigned>(args.parts),
                               row_threads(args.heads * args.head_dim), 0, stream>>>(args);
}

}  // namespace vgen::kernels
