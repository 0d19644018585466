// Norms and what stands around them, on CUDA devices.
#include "vgen/kernels/detail/cuda_tensors.h"

namespace vgen::kernels {
namespace cuda {
namespace {

/// (B, C) with columns side by side, any distance between samples.
at::Tensor factors_of(const at::Tensor& factor_BC) {
  const bool fits = factor_BC.stride(1) == 1 && is_aligned(factor_BC) &&
                    factor_BC.stride(0) % kVectorColumns == 0;
  return fits ? factor_BC : factor_BC.clone(at::MemoryFormat::Contiguous);
}

Factors as_args(const at::Tensor& factor_BC) {
  return {.numbers = numbers_of(factor_BC), .sample_stride = factor_BC.stride(0)};
}

CudaImages images_of(const at::Tensor& x_BCHW, int64_t groups) {
  return {.samples = x_BCHW.size(0),
          .pixels = x_BCHW.size(2) * x_BCHW.size(3),
          .channels = x_BCHW.size(1),
          .groups = groups};
}

int64_t image_parts(const at::Tensor& on, const CudaImages& images) {
  return group_norm_parts(images, num_processors(on));
}

GroupNormStats group_norm_stats(const at::Tensor& x_BCHW, int64_t groups, double eps) {
  TORCH_INTERNAL_ASSERT(is_group_norm_input(x_BCHW));
  const CudaImages images = images_of(x_BCHW, groups);
  TORCH_INTERNAL_ASSERT(images.channels % groups == 0);
  const int64_t parts = image_parts(x_BCHW, images);
  const at::Tensor sums = empty_floats({images.samples, parts, 2, images.channels}, x_BCHW);
  const GroupNormStats stats{empty_floats({images.samples, groups}, x_BCHW),
                             empty_floats({images.samples, groups}, x_BCHW)};
  run(CudaGroupNormStats{.images = images,
                         .eps = static_cast<float>(eps),
                         .x = numbers_of(x_BCHW),
                         .parts = parts,
                         .sums = sums.mutable_data_ptr<float>(),
                         .mean = stats.mean_BG.mutable_data_ptr<float>(),
                         .rstd = stats.rstd_BG.mutable_data_ptr<float>()},
      x_BCHW);
  return stats;
}

at::Tensor group_norm_apply(const at::Tensor& x_BCHW, const GroupNormStats& stats,
                            const GroupNormParameters& parameters) {
  const CudaImages images = images_of(x_BCHW, stats.mean_BG.size(1));
  const at::Tensor weight = floats(parameters.weight_C), bias = floats(parameters.bias_C);
  at::Tensor out_BCHW =
      parameters.is_in_place ? x_BCHW : at::empty_like(x_BCHW, at::MemoryFormat::ChannelsLast);
  run(CudaGroupNormApply{.images = images,
                         .parts = image_parts(x_BCHW, images),
                         .x = numbers_of(x_BCHW),
                         .y = numbers_of(out_BCHW),
                         .mean = stats.mean_BG.const_data_ptr<float>(),
                         .rstd = stats.rstd_BG.const_data_ptr<float>(),
                         .weight = weight.const_data_ptr<float>(),
                         .bias = bias.const_data_ptr<float>(),
                         .has_silu = parameters.has_silu},
      x_BCHW);
  return out_BCHW;
}

GroupNormGradients group_norm_gradient(const at::Tensor& x_BCHW, const at::Tensor& gradient_BCHW,
                                       const GroupNormStats& stats,
                                       const GroupNormParameters& parameters) {
  const CudaImages images = images_of(x_BCHW, stats.mean_BG.size(1));
  const int64_t samples = images.samples, channels = images.channels;
  const int64_t parts = image_parts(x_BCHW, images);
  const at::Tensor weight = floats(parameters.weight_C), bias = floats(parameters.bias_C);
  const at::Tensor dx = at::empty_like(x_BCHW, at::MemoryFormat::ChannelsLast);
  const at::Tensor sums = empty_floats({samples, parts, 2, channels}, x_BCHW);
  const at::Tensor totals_B2C = empty_floats({samples, 2, channels}, x_BCHW);
  const at::Tensor means = empty_floats({samples, 2, images.groups}, x_BCHW);
  run(CudaGroupNormGradient{.images = images,
                            .parts = parts,
                            .x = numbers_of(x_BCHW),
                            .dy = numbers_of(gradient_BCHW),
                            .dx = numbers_of(dx),
                            .mean = stats.mean_BG.const_data_ptr<float>(),
                            .rstd = stats.rstd_BG.const_data_ptr<float>(),
                            .weight = weight.const_data_ptr<float>(),
                            .bias = bias.const_data_ptr<float>(),
                            .has_silu = parameters.has_silu,
                            .sums = sums.mutable_data_ptr<float>(),
                            .totals = totals_B2C.mutable_data_ptr<float>(),
                            .means = means.mutable_data_ptr<float>()},
      x_BCHW);
  const at::Tensor totals_2C = totals_B2C.sum(0);
  return {.x_BCHW = dx, .weight_C = totals_2C.select(0, 1), .bias_C = totals_2C.select(0, 0)};
}

void add_to_channels(const at::Tensor& x_BCHW, const at::Tensor& bias_C,
                     const at::Tensor& residual_BCHW) {
  const at::Tensor bias = floats(bias_C);
  run(CudaAddToRows{.rows = x_BCHW.numel() / x_BCHW.size(1),
                    .columns = x_BCHW.size(1),
                    .y = numbers_of(x_BCHW),
                    .residual = residual_BCHW.defined() ? numbers_of(residual_BCHW) : Numbers{},
                    .addend = bias.const_data_ptr<float>()},
      x_BCHW);
}

at::Tensor column_sums(const at::Tensor& x_MN) {
  const at::Tensor in = rows_of(x_MN);
  const int64_t rows = in.size(0), columns = in.size(1);
  const int64_t parts = std::clamp<int64_t>(rows / 64, 1, 4 * num_processors(in));
  const at::Tensor sums_PN = empty_floats({parts, columns}, in);
  run(CudaColumnSums{.rows = rows,
                     .columns = columns,
                     .x = numbers_of(in),
                     .parts = parts,
                     .sums = sums_PN.mutable_data_ptr<float>()},
      in);
  return sums_PN.sum(0);
}

RmsNormResult rms_norm(const at::Tensor& x, const at::Tensor& weight_C, double eps,
                       at::ScalarType dtype) {
  const at::Tensor in = rows_of(x), weight = floats(weight_C);
  const int64_t columns = weight.size(0), rows = in.numel() / columns;
  RmsNormResult result{.y = at::empty(in.sizes(), in.options().dtype(dtype)),
                       .rstd_N = empty_floats({rows}, in)};
  run(CudaRmsNorm{.rows = rows,
                  .columns = columns,
                  .eps = static_cast<float>(eps),
                  .x = numbers_of(in),
                  .y = numbers_of(result.y),
                  .weight = weight.const_data_ptr<float>(),
                  .rstd = result.rstd_N.mutable_data_ptr<float>()},
      in);
  return result;
}

RmsNormGradients rms_norm_gradient(const at::Tensor& x, const at::Tensor& weight_C,
                                   const at::Tensor& rstd_N, const at::Tensor& dy) {
  const at::Tensor in = rows_of(x), gradient = rows_of(dy), weight = floats(weight_C);
  const int64_t columns = weight.size(0), rows = in.numel() / columns;
  const int64_t parts = parts_for(in, rows, columns);
  const at::Tensor dx = at::empty(in.sizes(), in.options());
  const at::Tensor dweight_PC = empty_floats({parts, columns}, in);
  run(CudaRmsNormGradient{.rows = rows,
                          .columns = columns,
                          .x = numbers_of(in),
                          .dy = numbers_of(gradient),
                          .dx = numbers_of(dx),
                          .weight = weight.const_data_ptr<float>(),
                          .rstd = rstd_N.const_data_ptr<float>(),
                          .parts = parts,
                          .dweight = dweight_PC.mutable_data_ptr<float>()},
      in);
  return {.x = dx, .weight_C = dweight_PC.sum(0).to(weight_C.scalar_type())};
}

ModulatedNormResult modulated_norm(const at::Tensor& x_BLC, const at::Tensor& scale_BC,
                                   const at::Tensor& shift_BC, double eps, at::ScalarType dtype) {
  const at::Tensor in = rows_of(x_BLC);
  const at::Tensor scale = factors_of(scale_BC), shift = factors_of(shift_BC);
  const int64_t rows = in.size(0) * in.size(1);
  ModulatedNormResult result{.y_BLC = at::empty(in.sizes(), in.options().dtype(dtype)),
                             .mean_N = empty_floats({rows}, in),
                             .rstd_N = empty_floats({rows}, in)};
  run(CudaModulatedNorm{.samples = in.size(0),
                        .length = in.size(1),
                        .columns = in.size(2),
                        .eps = static_cast<float>(eps),
                        .x = numbers_of(in),
                        .y = numbers_of(result.y_BLC),
                        .scale = as_args(scale),
                        .shift = as_args(shift),
                        .mean = result.mean_N.mutable_data_ptr<float>(),
                        .rstd = result.rstd_N.mutable_data_ptr<float>()},
      in);
  return result;
}

/// Blocks for each of the samples.
int64_t sample_parts(const at::Tensor& x_BLC) {
  const int64_t samples = x_BLC.size(0), length = x_BLC.size(1);
  const int64_t all = parts_for(x_BLC, samples * length, x_BLC.size(2));
  return std::clamp<int64_t>(all / samples, 1, length);
}

ModulatedNormGradients modulated_norm_gradient(const at::Tensor& x_BLC, const at::Tensor& scale_BC,
                                               const at::Tensor& mean_N, const at::Tensor& rstd_N,
                                               const at::Tensor& dy_BLC) {
  const at::Tensor in = rows_of(x_BLC), gradient = rows_of(dy_BLC), scale = factors_of(scale_BC);
  const int64_t samples = in.size(0), columns = in.size(2), parts = sample_parts(in);
  const at::Tensor dx = at::empty(in.sizes(), in.options());
  const at::Tensor sums = empty_floats({samples, parts, 2, columns}, in);
  run(CudaModulatedNormGradient{.samples = samples,
                                .length = in.size(1),
                                .columns = columns,
                                .x = numbers_of(in),
                                .dy = numbers_of(gradient),
                                .dx = numbers_of(dx),
                                .scale = as_args(scale),
                                .mean = mean_N.const_data_ptr<float>(),
                                .rstd = rstd_N.const_data_ptr<float>(),
                                .parts = parts,
                                .sums = sums.mutable_data_ptr<float>()},
      in);
  const at::Tensor sums_B2C = sums.sum(1);
  return {.x_BLC = dx, .scale_BC = sums_B2C.select(1, 0), .shift_BC = sums_B2C.select(1, 1)};
}

at::Tensor gated_sum(const at::Tensor& x_BLC, const at::Tensor& branch_BLC,
                     const at::Tensor& gate_BC) {
  const at::Tensor in = rows_of(x_BLC), branch = rows_of(branch_BLC), gate = factors_of(gate_BC);
  at::Tensor out = at::empty(in.sizes(), in.options());
  run(CudaGatedSum{.samples = in.size(0),
                   .length = in.size(1),
                   .columns = in.size(2),
                   .x = numbers_of(in),
                   .branch = numbers_of(branch),
                   .out = numbers_of(out),
                   .gate = as_args(gate)},
      in);
  return out;
}

GatedSumGradients gated_sum_gradient(const at::Tensor& branch_BLC, const at::Tensor& gate_BC,
                                     const at::Tensor& dy_BLC) {
  const at::Tensor branch = rows_of(branch_BLC), gradient = rows_of(dy_BLC);
  const at::Tensor gate = factors_of(gate_BC);
  const int64_t samples = branch.size(0), columns = branch.size(2), parts = sample_parts(branch);
  const at::Tensor dbranch = at::empty(branch.sizes(), branch.options());
  const at::Tensor sums_BPC = empty_floats({samples, parts, columns}, branch);
  run(CudaGatedSumGradient{.samples = samples,
                           .length = branch.size(1),
                           .columns = columns,
                           .branch = numbers_of(branch),
                           .dy = numbers_of(gradient),
                           .dbranch = numbers_of(dbranch),
                           .gate = as_args(gate),
                           .parts = parts,
                           .sums = sums_BPC.mutable_data_ptr<float>()},
      branch);
  return {.branch_BLC = dbranch, .gate_BC = sums_BPC.sum(1)};
}

}  // namespace
}  // namespace cuda

void set_cuda_norms(CudaKernels& table) {
  table.add_to_channels = cuda::add_to_channels;
  table.column_sums = cuda::column_sums;
  table.group_norm_stats = cuda::group_norm_stats;
  table.group_norm_apply = cuda::group_norm_apply;
  table.group_norm_gradient = cuda::group_norm_gradient;
  table.rms_norm = cuda::rms_norm;
  table.rms_norm_gradient = cuda::rms_norm_gradient;
  table.modulated_norm = cuda::modulated_norm;
  table.modulated_norm_gradient = cuda::modulated_norm_gradient;
  table.gated_sum = cuda::gated_sum;
  table.gated_sum_gradient = cuda::gated_sum_gradient;
}

}  // namespace vgen::kernels
