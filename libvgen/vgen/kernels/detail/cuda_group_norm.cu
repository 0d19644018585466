// Group normalisation of channels-last activations on CUDA devices. A block has some pixels of a
// sample: threads side by side have the channels of a pixel, eight each, and lanes of them the
// pixels one behind the other.
#include <algorithm>

#include "vgen/kernels/detail/cuda_vectors.cuh"

namespace vgen::kernels {
namespace {

constexpr int kBlockThreads = 256;  ///< at most: enough for 2048 channels

/// A block's shape: x the vectors of a pixel, y the lanes.
dim3 threads_of(const CudaImages& images) {
  const auto vectors = static_cast<unsigned>(images.channels / kVectorColumns);
  return {vectors, kBlockThreads / vectors};
}

dim3 blocks_of(const CudaImages& images, int64_t parts) {
  return {static_cast<unsigned>(parts), static_cast<unsigned>(images.samples)};
}

__device__ int64_t own_channel() { return static_cast<int64_t>(threadIdx.x) * kVector; }

/// body(index) for the pixels of a lane, the index that of its thread's first channel.
template <class Body>
__device__ void for_pixels(const CudaImages& images, const Body& body) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.y;
  const int64_t sample = images.pixels * blockIdx.y;
  for (int64_t p = first; p < images.pixels; p += stride) {
    body((sample + p) * images.channels + own_channel());
  }
}

/// Adds up what the lanes have of each channel, and writes both sums as this block's part.
__device__ void write_sums(const Vector& first, const Vector& second, const CudaImages& images,
                           int64_t parts, float* sums) {
  extern __shared__ float shared[];  // (lanes, 2, channels)
  const int channels = static_cast<int>(images.channels);
  const int at = static_cast<int>(threadIdx.y) * 2 * channels + static_cast<int>(own_channel());
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    shared[at + i] = first[i];
    shared[at + channels + i] = second[i];
  }
  __syncthreads();
  float* to = sums + (static_cast<int64_t>(blockIdx.y) * parts + blockIdx.x) * 2 * channels;
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  const int threads = static_cast<int>(blockDim.x * blockDim.y);
  for (int c = thread; c < 2 * channels; c += threads) {
    float sum = 0;
    for (int lane = 0; lane < static_cast<int>(blockDim.y); ++lane) {
      sum += shared[lane * 2 * channels + c];
    }
    to[c] = sum;
  }
}

size_t shared_bytes(const CudaImages& images) {
  return threads_of(images).y * 2 * static_cast<size_t>(images.channels) * sizeof(float);
}

__global__ void __launch_bounds__(kBlockThreads) sums_kernel(const CudaGroupNormStats args) {
  const int64_t sample = args.images.pixels * blockIdx.y;
  Vector pivot, sum = {}, square = {};
  load(args.x, sample * args.images.channels + own_channel(), pivot);
  for_pixels(args.images, [&](int64_t index) {
    Vector x;
    load(args.x, index, x);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float value = x[i] - pivot[i];
      sum[i] += value;
      square[i] += value * value;
    }
  });
  write_sums(sum, square, args.images, args.parts, args.sums);
}

__device__ double warp_sum(double value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

/// Of a whole warp, in every lane.
__device__ double sum_of_parts(const float* sums, int64_t parts, int64_t sample, int which,
                               int64_t channels, int64_t channel) {
  double sum = 0;
  for (int64_t p = threadIdx.x; p < parts; p += 32) {
    sum += sums[((sample * parts + p) * 2 + which) * channels + channel];
  }
  return warp_sum(sum);
}

/// Warp (g, s) has a group: each channel's mean and squared deviations about its own pivot, joined.
__global__ void stats_kernel(const CudaGroupNormStats args) {
  const int64_t group = blockIdx.x, sample = blockIdx.y, channels = args.images.channels;
  const int64_t per_group = channels / args.images.groups;
  const auto pixels = static_cast<double>(args.images.pixels);
  double mean = 0, square = 0, deviation = 0;
  for (int64_t c = group * per_group; c < (group + 1) * per_group; ++c) {
    Vector pivots;
    load(args.x, sample * args.images.pixels * channels + c / kVector * kVector, pivots);
    double pivot = 0;
#pragma unroll
    for (int i = 0; i < kVector; ++i) pivot = i == c % kVector ? pivots[i] : pivot;
    const double inner = sum_of_parts(args.sums, args.parts, sample, 0, channels, c) / pixels;
    const double of_channel = pivot + inner;
    mean += of_channel;
    square += of_channel * of_channel;
    deviation +=
        sum_of_parts(args.sums, args.parts, sample, 1, channels, c) / pixels - inner * inner;
  }
  if (threadIdx.x != 0) return;
  const auto count = static_cast<double>(per_group);
  mean /= count;
  const double variance = fmax((deviation + square) / count - mean * mean, 0.0);
  args.mean[sample * args.images.groups + group] = static_cast<float>(mean);
  args.rstd[sample * args.images.groups + group] =
      static_cast<float>(1 / sqrt(variance + args.eps));
}

/// What a thread needs to know of its eight channels: n = x rstd - mean rstd.
struct Channels {
  Vector rstd, shift, weight, bias;
};
template <class Args>
__device__ Channels own_channels(const Args& args) {
  Channels own;
  load({const_cast<float*>(args.weight)}, own_channel(), own.weight);
  load({const_cast<float*>(args.bias)}, own_channel(), own.bias);
  const int64_t per_group = args.images.channels / args.images.groups;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const int64_t at = blockIdx.y * args.images.groups + (own_channel() + i) / per_group;
    own.rstd[i] = args.rstd[at];
    own.shift[i] = -args.mean[at] * args.rstd[at];
  }
  return own;
}

__global__ void __launch_bounds__(kBlockThreads) apply_kernel(const CudaGroupNormApply args) {
  const Channels own = own_channels(args);
  for_pixels(args.images, [&](int64_t index) {
    Vector x;
    load(args.x, index, x);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float t = (x[i] * own.rstd[i] + own.shift[i]) * own.weight[i] + own.bias[i];
      x[i] = args.has_silu ? t * sigmoid(t) : t;
    }
    store(x, args.y, index);
  });
}

/// n and dt of a pixel.
__device__ void load_inner(const CudaGroupNormGradient& args, const Channels& own, int64_t index,
                           Vector& x, Vector& dy) {
  load(args.x, index, x);
  load(args.dy, index, dy);
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    x[i] = x[i] * own.rstd[i] + own.shift[i];
    if (!args.has_silu) continue;
    const float t = x[i] * own.weight[i] + own.bias[i], share = sigmoid(t);
    dy[i] *= share * (1 + t * (1 - share));
  }
}

__global__ void __launch_bounds__(kBlockThreads)
    gradient_sums_kernel(const CudaGroupNormGradient args) {
  const Channels own = own_channels(args);
  Vector sum = {}, product = {};
  for_pixels(args.images, [&](int64_t index) {
    Vector x, dy;
    load_inner(args, own, index, x, dy);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      sum[i] += dy[i];
      product[i] += dy[i] * x[i];
    }
  });
  write_sums(sum, product, args.images, args.parts, args.sums);
}

/// Warp (g, s) has a group.
__global__ void gradient_means_kernel(const CudaGroupNormGradient args) {
  const int64_t group = blockIdx.x, sample = blockIdx.y, channels = args.images.channels;
  const int64_t per_group = channels / args.images.groups;
  for (int which = 0; which < 2; ++which) {
    double weighted = 0;
    for (int64_t c = group * per_group; c < (group + 1) * per_group; ++c) {
      const double sum = sum_of_parts(args.sums, args.parts, sample, which, channels, c);
      if (threadIdx.x == 0) {
        args.totals[(sample * 2 + which) * channels + c] = static_cast<float>(sum);
      }
      weighted += args.weight[c] * sum;
    }
    if (threadIdx.x != 0) continue;
    const double count = static_cast<double>(args.images.pixels) * static_cast<double>(per_group);
    args.means[(sample * 2 + which) * args.images.groups + group] =
        static_cast<float>(weighted / count);
  }
}

__global__ void __launch_bounds__(kBlockThreads) gradient_kernel(const CudaGroupNormGradient args) {
  const Channels own = own_channels(args);
  const int64_t groups = args.images.groups, per_group = args.images.channels / groups;
  Vector mean_dt, mean_dtn;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const int64_t at = blockIdx.y * 2 * groups + (own_channel() + i) / per_group;
    mean_dt[i] = args.means[at];
    mean_dtn[i] = args.means[at + groups];
  }
  for_pixels(args.images, [&](int64_t index) {
    Vector x, dy;
    load_inner(args, own, index, x, dy);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      x[i] = own.rstd[i] * (own.weight[i] * dy[i] - mean_dt[i] - x[i] * mean_dtn[i]);
    }
    store(x, args.dx, index);
  });
}

}  // namespace

int64_t group_norm_parts(const CudaImages& images, int64_t processors) {
  constexpr int64_t kBlocksPerProcessor = 6, kPixelsPerThread = 4;
  const int64_t lanes = threads_of(images).y;
  const int64_t most = images.pixels / (lanes * kPixelsPerThread);
  return std::clamp<int64_t>(processors * kBlocksPerProcessor / images.samples, 1,
                             std::max<int64_t>(most, 1));
}

void launch(const CudaGroupNormStats& args, cudaStream_t stream) {
  const CudaImages& images = args.images;
  sums_kernel<<<blocks_of(images, args.parts), threads_of(images), shared_bytes(images), stream>>>(
      args);
  stats_kernel<<<blocks_of(images, images.groups), 32, 0, stream>>>(args);
}

void launch(const CudaGroupNormApply& args, cudaStream_t stream) {
  apply_kernel<<<blocks_of(args.images, args.parts), threads_of(args.images), 0, stream>>>(args);
}

void launch(const CudaGroupNormGradient& args, cudaStream_t stream) {
  const CudaImages& images = args.images;
  const dim3 blocks = blocks_of(images, args.parts), threads = threads_of(images);
  gradient_sums_kernel<<<blocks, threads, shared_bytes(images), stream>>>(args);
  gradient_means_kernel<<<blocks_of(images, images.groups), 32, 0, stream>>>(args);
  gradient_kernel<<<blocks, threads, 0, stream>>>(args);
}

}  // namespace vgen::kernels
