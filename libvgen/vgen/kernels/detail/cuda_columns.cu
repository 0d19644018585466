// What is the same for every row of a matrix, on CUDA devices. A block has up to 512 columns, eight
// a thread, and lanes of threads take the rows one behind the other.
#include <algorithm>

#include "vgen/kernels/detail/cuda_vectors.cuh"

namespace vgen::kernels {
namespace {

constexpr unsigned kBlockThreads = 256, kMaxVectors = 64;
constexpr int64_t kRowsPerThread = 8;

struct Shape {
  dim3 blocks, threads;
};
/// parts 0: as many blocks as it takes.
Shape shape_for(int64_t rows, int64_t columns, int64_t parts) {
  const auto vectors = static_cast<unsigned>(columns / kVectorColumns);
  const unsigned width = std::min(vectors, kMaxVectors), lanes = kBlockThreads / width;
  if (parts == 0) parts = (rows + lanes * kRowsPerThread - 1) / (lanes * kRowsPerThread);
  return {{static_cast<unsigned>(parts), (vectors + width - 1) / width}, {width, lanes}};
}

__device__ int64_t own_column() {
  return (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kVector;
}
__device__ int64_t first_row() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
}
__device__ int64_t row_stride() { return static_cast<int64_t>(gridDim.x) * blockDim.y; }

__global__ void __launch_bounds__(kBlockThreads) add_to_rows_kernel(const CudaAddToRows args) {
  const int64_t column = own_column();
  if (column >= args.columns) return;
  Vector addend;
  load({const_cast<float*>(args.addend)}, column, addend);
  for (int64_t row = first_row(); row < args.rows; row += row_stride()) {
    const int64_t index = row * args.columns + column;
    Vector y, residual = {};
    load(args.y, index, y);
    if (args.residual.data != nullptr) load(args.residual, index, residual);
#pragma unroll
    for (int i = 0; i < kVector; ++i) y[i] += addend[i] + residual[i];
    store(y, args.y, index);
  }
}

__global__ void __launch_bounds__(kBlockThreads) column_sums_kernel(const CudaColumnSums args) {
  __shared__ float shared[kBlockThreads * kVector];  // (lanes, columns of the block)
  const int64_t column = own_column();
  Vector sum = {};
  if (column < args.columns) {
    for (int64_t row = first_row(); row < args.rows; row += row_stride()) {
      Vector x;
      load(args.x, row * args.columns + column, x);
#pragma unroll
      for (int i = 0; i < kVector; ++i) sum[i] += x[i];
    }
  }
  const unsigned width = blockDim.x * kVector;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    shared[threadIdx.y * width + threadIdx.x * kVector + i] = sum[i];
  }
  __syncthreads();
  if (threadIdx.y != 0 || column >= args.columns) return;
  for (unsigned lane = 1; lane < blockDim.y; ++lane) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum[i] += shared[lane * width + threadIdx.x * kVector + i];
  }
  store(sum, {args.sums}, blockIdx.x * args.columns + column);
}

}  // namespace

void launch(const CudaAddToRows& args, cudaStream_t stream) {
  const Shape shape = shape_for(args.rows, args.columns, 0);
  add_to_rows_kernel<<<shape.blocks, shape.threads, 0, stream>>>(args);
}

void launch(const CudaColumnSums& args, cudaStream_t stream) {
  const Shape shape = shape_for(args.rows, args.columns, args.parts);
  column_sums_kernel<<<shape.blocks, shape.threads, 0, stream>>>(args);
}

}  // namespace vgen::kernels
