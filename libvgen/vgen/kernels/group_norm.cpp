#include "vgen/kernels/group_norm.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "vgen/kernels/detail/cuda_kernels.h"
#include "vgen/kernels/detail/image_kernels.h"
#include "vgen/kernels/detail/tensor_elements.h"

namespace vgen::kernels {
namespace {

/// Pixels summed in float32 at once; sums of chunks are added in double.
constexpr int64_t kChunk = 256;

GroupNormShape shape_of(const at::Tensor& x_BCHW) {
  TORCH_INTERNAL_ASSERT(is_group_norm_input(x_BCHW));
  return {.batch = x_BCHW.size(0),
          .pixels = x_BCHW.size(2) * x_BCHW.size(3),
          .channels = x_BCHW.size(1)};
}

/// Two sums per image and channel, in double.
struct ChannelSums {
  std::vector<double> first_BC, second_BC;
};

/// sum_chunk(image, begin, end, first, second) writes the two float sums of each channel.
template <class SumChunk>
ChannelSums sum_channels(const GroupNormShape& shape, const SumChunk& sum_chunk) {
  const int64_t chunks = (shape.pixels + kChunk - 1) / kChunk, channels = shape.channels;
  std::vector<float> partial(shape.batch * chunks * 2 * channels);
  at::parallel_for(0, shape.batch * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* sums = partial.data() + i * 2 * channels;
      const int64_t first = i % chunks * kChunk;
      sum_chunk(i / chunks, first, std::min(first + kChunk, shape.pixels), sums, sums + channels);
    }
  });
  ChannelSums sums{std::vector<double>(shape.batch * channels),
                   std::vector<double>(shape.batch * channels)};
  at::parallel_for(0, shape.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * chunks; i < end * chunks; ++i) {
      const float* from = partial.data() + i * 2 * channels;
      double* first = sums.first_BC.data() + i / chunks * channels;
      double* second = sums.second_BC.data() + i / chunks * channels;
      for (int64_t c = 0; c < channels; ++c) {
        first[c] += from[c];
        second[c] += from[channels + c];
      }
    }
  });
  return sums;
}

/// body(image, begin, end) over all pixels in parallel.
template <class Body>
void for_pixels(const GroupNormShape& shape, const Body& body) {
  const int64_t chunks = (shape.pixels + kChunk - 1) / kChunk;
  at::parallel_for(0, shape.batch * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % chunks * kChunk;
      body(i / chunks, first, std::min(first + kChunk, shape.pixels));
    }
  });
}

/// y = x * scale + shift is the normalisation with its affine part, per image and channel.
struct Affine {
  std::vector<float> scale_BC, shift_BC;
};
Affine affine_of(const GroupNormShape& shape, const GroupNormStats& stats,
                 const GroupNormParameters& parameters) {
  const int64_t groups = stats.mean_BG.size(1), per_group = shape.channels / groups;
  const auto mean = stats.mean_BG.accessor<float, 2>(), rstd = stats.rstd_BG.accessor<float, 2>();
  const at::Tensor weight_C = parameters.weight_C.contiguous();
  const at::Tensor bias_C = parameters.bias_C.contiguous();
  const float* weight = weight_C.const_data_ptr<float>();
  const float* bias = bias_C.const_data_ptr<float>();
  Affine affine{std::vector<float>(shape.batch * shape.channels),
                std::vector<float>(shape.batch * shape.channels)};
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t c = 0; c < shape.channels; ++c) {
      const float scale = rstd[b][c / per_group] * weight[c];
      affine.scale_BC[b * shape.channels + c] = scale;
      affine.shift_BC[b * shape.channels + c] = bias[c] - mean[b][c / per_group] * scale;
    }
  }
  return affine;
}

double value_at(const at::Tensor& x_BCHW, int64_t index) {
  return x_BCHW.scalar_type() == at::kFloat
             ? x_BCHW.const_data_ptr<float>()[index]
             : static_cast<float>(x_BCHW.const_data_ptr<at::BFloat16>()[index]);
}

}  // namespace

bool is_group_norm_input(const at::Tensor& x_BCHW) {
  if (x_BCHW.dim() != 4 || x_BCHW.numel() == 0 ||
      !x_BCHW.is_contiguous(at::MemoryFormat::ChannelsLast)) {
    return false;
  }
  if (!x_BCHW.is_cuda()) return has_elements(x_BCHW);
  const bool is_aligned = reinterpret_cast<uintptr_t>(x_BCHW.const_data_ptr()) % 16 == 0;
  return is_aligned && is_cuda_input(x_BCHW.permute({0, 2, 3, 1}), kMaxCudaChannels);
}

GroupNormStats group_norm_stats(const at::Tensor& x_BCHW, int64_t groups, double eps, CpuIsa isa) {
  if (x_BCHW.is_cuda()) return cuda_kernels()->group_norm_stats(x_BCHW, groups, eps);
  const ImageKernels& kernels = image_kernels(isa);
  const GroupNormShape shape = shape_of(x_BCHW);
  const int64_t per_group = shape.channels / groups;
  TORCH_INTERNAL_ASSERT(per_group * groups == shape.channels);
  const Pixels in = elements_of(x_BCHW);
  const ChannelSums sums = sum_channels(
      shape, [&](int64_t image, int64_t begin, int64_t end, float* sum, float* square) {
        kernels.group_norm_sums(shape, in, image, begin, end, sum, square);
      });
  GroupNormStats stats{at::empty({shape.batch, groups}, at::kFloat),
                       at::empty({shape.batch, groups}, at::kFloat)};
  const double pixels = static_cast<double>(shape.pixels);
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t g = 0; g < groups; ++g) {
      // Each channel's mean and squared deviations about its own pivot, then joined.
      double mean = 0, squares = 0;
      for (int64_t c = g * per_group; c < (g + 1) * per_group; ++c) {
        const int64_t at = b * shape.channels + c;
        const double pivot = value_at(x_BCHW, b * shape.pixels * shape.channels + c);
        mean += (pivot + sums.first_BC[at] / pixels) / static_cast<double>(per_group);
      }
      for (int64_t c = g * per_group; c < (g + 1) * per_group; ++c) {
        const int64_t at = b * shape.channels + c;
        const double pivot = value_at(x_BCHW, b * shape.pixels * shape.channels + c);
        const double inner = sums.first_BC[at] / pixels, outer = pivot + inner - mean;
        squares += sums.second_BC[at] - pixels * inner * inner + pixels * outer * outer;
      }
      const double variance = std::max(squares, 0.0) / (pixels * static_cast<double>(per_group));
      stats.mean_BG.mutable_data_ptr<float>()[b * groups + g] = static_cast<float>(mean);
      stats.rstd_BG.mutable_data_ptr<float>()[b * groups + g] =
          static_cast<float>(1 / std::sqrt(variance + eps));
    }
  }
  return stats;
}

at::Tensor group_norm_apply(const at::Tensor& x_BCHW, const GroupNormStats& stats,
                            const GroupNormParameters& parameters) {
  if (x_BCHW.is_cuda()) return cuda_kernels()->group_norm_apply(x_BCHW, stats, parameters);
  const ImageKernels& kernels = image_kernels(parameters.isa);
  const GroupNormShape shape = shape_of(x_BCHW);
  const Affine affine = affine_of(shape, stats, parameters);
  const at::Tensor out_BCHW =
      parameters.is_in_place ? x_BCHW : at::empty_like(x_BCHW, at::MemoryFormat::ChannelsLast);
  const Pixels in = elements_of(x_BCHW), out = elements_of(out_BCHW);
  for_pixels(shape, [&](int64_t image, int64_t begin, int64_t end) {
    kernels.group_norm_apply(shape, in, out, affine.scale_BC.data() + image * shape.channels,
                             affine.shift_BC.data() + image * shape.channels, parameters.has_silu,
                             image, begin, end);
  });
  return out_BCHW;
}

GroupNormGradients group_norm_gradient(const at::Tensor& x_BCHW, const at::Tensor& gradient_BCHW,
                                       const GroupNormStats& stats,
                                       const GroupNormParameters& parameters) {
  TORCH_INTERNAL_ASSERT(is_group_norm_input(gradient_BCHW) &&
                        gradient_BCHW.sizes() == x_BCHW.sizes() &&
                        gradient_BCHW.scalar_type() == x_BCHW.scalar_type());
  if (x_BCHW.is_cuda()) {
    return cuda_kernels()->group_norm_gradient(x_BCHW, gradient_BCHW, stats, parameters);
  }
  const ImageKernels& kernels = image_kernels(parameters.isa);
  const GroupNormShape shape = shape_of(x_BCHW);
  const int64_t channels = shape.channels;
  const Affine affine = affine_of(shape, stats, parameters);
  const Pixels in = elements_of(x_BCHW), gradient = elements_of(gradient_BCHW);
  const ChannelSums sums = sum_channels(shape, [&](int64_t image, int64_t begin, int64_t end,
                                                   float* sum, float* product) {
    kernels.group_norm_gradient_sums(shape, in, gradient, affine.scale_BC.data() + image * channels,
                                     affine.shift_BC.data() + image * channels, parameters.has_silu,
                                     image, begin, end, sum, product);
  });

  // With n = (x - mean) rstd and dt the gradient to weight n + bias:
  // dx = rstd (weight dt - mean(weight dt) - n mean(weight dt n)), means over the group.
  const int64_t groups = stats.mean_BG.size(1), per_group = channels / groups;
  const double count = static_cast<double>(shape.pixels * per_group);
  const at::Tensor weight_C = parameters.weight_C.contiguous();
  const float* weight = weight_C.const_data_ptr<float>();
  std::vector<float> slope_BC(shape.batch * channels), offset_BC(shape.batch * channels);
  std::vector<double> weight_sum(channels), bias_sum(channels);
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t g = 0; g < groups; ++g) {
      const double mean = stats.mean_BG.const_data_ptr<float>()[b * groups + g];
      const double rstd = stats.rstd_BG.const_data_ptr<float>()[b * groups + g];
      double mean_dt = 0, mean_dtn = 0;
      for (int64_t c = g * per_group; c < (g + 1) * per_group; ++c) {
        const double dt = sums.first_BC[b * channels + c];
        const double dtn = rstd * (sums.second_BC[b * channels + c] - mean * dt);
        bias_sum[c] += dt;
        weight_sum[c] += dtn;
        mean_dt += weight[c] * dt / count;
        mean_dtn += weight[c] * dtn / count;
      }
      const double slope = -rstd * rstd * mean_dtn, offset = -rstd * mean_dt - slope * mean;
      std::fill_n(slope_BC.begin() + b * channels + g * per_group, per_group,
                  static_cast<float>(slope));
      std::fill_n(offset_BC.begin() + b * channels + g * per_group, per_group,
                  static_cast<float>(offset));
    }
  }

  GroupNormGradients result{at::empty_like(x_BCHW, at::MemoryFormat::ChannelsLast),
                            at::empty({channels}, at::kFloat), at::empty({channels}, at::kFloat)};
  std::copy(weight_sum.begin(), weight_sum.end(), result.weight_C.mutable_data_ptr<float>());
  std::copy(bias_sum.begin(), bias_sum.end(), result.bias_C.mutable_data_ptr<float>());
  const Pixels out = elements_of(result.x_BCHW);
  for_pixels(shape, [&](int64_t image, int64_t begin, int64_t end) {
    const int64_t at = image * channels;
    kernels.group_norm_gradient(shape, in, gradient, out, affine.scale_BC.data() + at,
                                affine.shift_BC.data() + at, slope_BC.data() + at,
                                offset_BC.data() + at, parameters.has_silu, image, begin, end);
  });
  return result;
}

void add_to_channels(const at::Tensor& x_BCHW, const at::Tensor& bias_C,
                     const at::Tensor& residual_BCHW) {
  TORCH_INTERNAL_ASSERT(is_group_norm_input(x_BCHW) && x_BCHW.is_cuda() &&
                        bias_C.numel() == x_BCHW.size(1));
  TORCH_INTERNAL_ASSERT(!residual_BCHW.defined() || (is_group_norm_input(residual_BCHW) &&
                                                     residual_BCHW.sizes() == x_BCHW.sizes()));
  cuda_kernels()->add_to_channels(x_BCHW, bias_C, residual_BCHW);
}

at::Tensor channel_sums(const at::Tensor& x_BCHW, CpuIsa isa) {
  if (x_BCHW.is_cuda()) {
    return cuda_kernels()->column_sums(x_BCHW.permute({0, 2, 3, 1}).view({-1, x_BCHW.size(1)}));
  }
  const ImageKernels& kernels = image_kernels(isa);
  const GroupNormShape shape = shape_of(x_BCHW);
  const Pixels in = elements_of(x_BCHW);
  const std::vector<float> unused(shape.channels);
  const ChannelSums sums = sum_channels(
      shape, [&](int64_t image, int64_t begin, int64_t end, float* sum, float* product) {
        kernels.group_norm_gradient_sums(shape, in, in, unused.data(), unused.data(),
                                         /*has_silu=*/false, image, begin, end, sum, product);
      });
  const at::Tensor total_C = at::empty({shape.channels}, at::kFloat);
  for (int64_t c = 0; c < shape.channels; ++c) {
    double total = 0;
    for (int64_t b = 0; b < shape.batch; ++b) total += sums.first_BC[b * shape.channels + c];
    total_C.mutable_data_ptr<float>()[c] = static_cast<float>(total);
  }
  return total_C;
}

}  // namespace vgen::kernels
