#include "vgen/kernels/adaln.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "vgen/kernels/detail/cuda_kernels.h"
#include "vgen/kernels/detail/row_kernels.h"
#include "vgen/kernels/detail/tensor_elements.h"

namespace vgen::kernels {
namespace {

/// Rows of a sample whose gradients to its factors are summed at once.
constexpr int64_t kRowChunk = 64;

bool are_factors(const at::Tensor& factor_BC, const at::Tensor& x_BLC) {
  const bool has_shape = factor_BC.dim() == 2 && factor_BC.size(0) == x_BLC.size(0) &&
                         factor_BC.size(1) == x_BLC.size(2);
  if (x_BLC.is_cuda()) return has_shape && is_cuda_input(factor_BC);
  return has_shape && factor_BC.is_cpu() && factor_BC.scalar_type() == at::kFloat &&
         factor_BC.is_contiguous();
}

/// add(begin, end, sums) for chunks of the rows of each sample, `count` sums of C columns each;
/// returns their totals, each (B, C), in the order of the rows.
template <class Add>
std::vector<at::Tensor> sum_samples(const at::Tensor& x_BLC, int64_t count, const Add& add) {
  const int64_t samples = x_BLC.size(0), length = x_BLC.size(1), columns = x_BLC.size(2);
  const int64_t chunks = (length + kRowChunk - 1) / kRowChunk;
  const at::Tensor partial = at::empty({samples, chunks, count, columns}, at::kFloat);
  auto* sums = partial.mutable_data_ptr<float>();
  at::parallel_for(0, samples * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t sample = i / chunks, first = i % chunks * kRowChunk;
      const int64_t row = sample * length;
      add(row + first, row + std::min(first + kRowChunk, length), sums + i * count * columns);
    }
  });
  return partial.sum(1).unbind(1);
}

}  // namespace

bool is_adaln_input(const at::Tensor& x_BLC) {
  const bool is_here = x_BLC.is_cuda() ? is_cuda_input(x_BLC) : has_elements(x_BLC);
  return is_here && x_BLC.dim() == 3 && x_BLC.numel() > 0;
}

ModulatedNormResult modulated_norm(const at::Tensor& x_BLC, const at::Tensor& scale_BC,
                                   const at::Tensor& shift_BC, double eps, at::ScalarType dtype,
                                   CpuIsa isa) {
  TORCH_INTERNAL_ASSERT(is_adaln_input(x_BLC) && are_factors(scale_BC, x_BLC) &&
                        are_factors(shift_BC, x_BLC));
  if (x_BLC.is_cuda()) {
    return cuda_kernels()->modulated_norm(x_BLC, scale_BC, shift_BC, eps, dtype);
  }
  const at::Tensor in = x_BLC.contiguous();
  const int64_t columns = in.size(2), rows = in.size(0) * in.size(1);
  ModulatedNormResult result{.y_BLC = at::empty(in.sizes(), in.options().dtype(dtype)),
                             .mean_N = at::empty({rows}, at::kFloat),
                             .rstd_N = at::empty({rows}, at::kFloat)};
  const ModulatedNormArgs args{.columns = columns,
                               .sample_rows = in.size(1),
                               .eps = static_cast<float>(eps),
                               .x = elements_of(in),
                               .y = elements_of(result.y_BLC),
                               .scale = scale_BC.const_data_ptr<float>(),
                               .shift = shift_BC.const_data_ptr<float>(),
                               .mean = result.mean_N.mutable_data_ptr<float>(),
                               .rstd = result.rstd_N.mutable_data_ptr<float>()};
  const RowKernels& kernels = row_kernels(isa);
  at::parallel_for(0, rows, rows_per_task(columns),
                   [&](int64_t begin, int64_t end) { kernels.modulated_norm(args, begin, end); });
  return result;
}

ModulatedNormGradients modulated_norm_gradient(const at::Tensor& x_BLC, const at::Tensor& scale_BC,
                                               const at::Tensor& mean_N, const at::Tensor& rstd_N,
                                               const at::Tensor& dy_BLC, CpuIsa isa) {
  TORCH_INTERNAL_ASSERT(is_adaln_input(x_BLC) && are_factors(scale_BC, x_BLC) &&
                        is_adaln_input(dy_BLC) && dy_BLC.sizes() == x_BLC.sizes());
  if (x_BLC.is_cuda()) {
    return cuda_kernels()->modulated_norm_gradient(x_BLC, scale_BC, mean_N, rstd_N, dy_BLC);
  }
  const at::Tensor in = x_BLC.contiguous(), gradient = dy_BLC.contiguous();
  const int64_t columns = in.size(2);
  const at::Tensor dx = at::empty(in.sizes(), in.options());
  const ModulatedNormGradientArgs args{.columns = columns,
                                       .sample_rows = in.size(1),
                                       .x = elements_of(in),
                                       .dy = elements_of(gradient),
                                       .dx = elements_of(dx),
                                       .scale = scale_BC.const_data_ptr<float>(),
                                       .mean = mean_N.const_data_ptr<float>(),
                                       .rstd = rstd_N.const_data_ptr<float>()};
  const RowKernels& kernels = row_kernels(isa);
  const auto sums = sum_samples(in, 2, [&](int64_t begin, int64_t end, float* sums) {
    kernels.modulated_norm_gradient(args, begin, end, sums, sums + columns);
  });
  return {.x_BLC = dx, .scale_BC = sums[0], .shift_BC = sums[1]};
}

at::Tensor gated_sum(const at::Tensor& x_BLC, const at::Tensor& branch_BLC,
                     const at::Tensor& gate_BC, CpuIsa isa) {
  TORCH_INTERNAL_ASSERT(is_adaln_input(x_BLC) && is_adaln_input(branch_BLC) &&
                        branch_BLC.sizes() == x_BLC.sizes() && are_factors(gate_BC, x_BLC));
  if (x_BLC.is_cuda()) return cuda_kernels()->gated_sum(x_BLC, branch_BLC, gate_BC);
  const at::Tensor in = x_BLC.contiguous(), branch = branch_BLC.contiguous();
  at::Tensor out = at::empty(in.sizes(), in.options());
  const GatedSumArgs args{.columns = in.size(2),
                          .sample_rows = in.size(1),
                          .x = elements_of(in),
                          .branch = elements_of(branch),
                          .out = elements_of(out),
                          .gate = gate_BC.const_data_ptr<float>()};
  const RowKernels& kernels = row_kernels(isa);
  at::parallel_for(0, in.size(0) * in.size(1), rows_per_task(args.columns),
                   [&](int64_t begin, int64_t end) { kernels.gated_sum(args, begin, end); });
  return out;
}

GatedSumGradients gated_sum_gradient(const at::Tensor& branch_BLC, const at::Tensor& gate_BC,
                                     const at::Tensor& dy_BLC, CpuIsa isa) {
  TORCH_INTERNAL_ASSERT(is_adaln_input(branch_BLC) && is_adaln_input(dy_BLC) &&
                        branch_BLC.sizes() == dy_BLC.sizes() && are_factors(gate_BC, branch_BLC));
  if (dy_BLC.is_cuda()) return cuda_kernels()->gated_sum_gradient(branch_BLC, gate_BC, dy_BLC);
  const at::Tensor branch = branch_BLC.contiguous(), gradient = dy_BLC.contiguous();
  const at::Tensor dbranch = at::empty(branch.sizes(), branch.options());
  const GatedSumGradientArgs args{.columns = branch.size(2),
                                  .sample_rows = branch.size(1),
                                  .branch = elements_of(branch),
                                  .dy = elements_of(gradient),
                                  .dbranch = elements_of(dbranch),
                                  .gate = gate_BC.const_data_ptr<float>()};
  const RowKernels& kernels = row_kernels(isa);
  const auto sums = sum_samples(branch, 1, [&](int64_t begin, int64_t end, float* sums) {
    kernels.gated_sum_gradient(args, begin, end, sums);
  });
  return {.branch_BLC = dbranch, .gate_BC = sums[0]};
}

}  // namespace vgen::kernels
