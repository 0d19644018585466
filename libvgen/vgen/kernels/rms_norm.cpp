#include "vgen/kernels/rms_norm.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "vgen/kernels/detail/cuda_kernels.h"
#include "vgen/kernels/detail/row_kernels.h"
#include "vgen/kernels/detail/tensor_elements.h"

namespace vgen::kernels {
namespace {

/// Rows whose gradients to the weight are summed in float32 at once.
constexpr int64_t kRowChunk = 64;

/// The sum of the chunks, in their order.
at::Tensor sum_chunks(const at::Tensor& partial_KC) {
  const int64_t num_chunks = partial_KC.size(0), columns = partial_KC.size(1);
  at::Tensor sum_C = at::empty({columns}, at::kFloat);
  const float* from = partial_KC.const_data_ptr<float>();
  auto* to = sum_C.mutable_data_ptr<float>();
  at::parallel_for(0, columns, 256, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      double sum = 0;
      for (int64_t k = 0; k < num_chunks; ++k) sum += from[k * columns + c];
      to[c] = static_cast<float>(sum);
    }
  });
  return sum_C;
}

at::Tensor floats(const at::Tensor& tensor) { return tensor.to(at::kFloat).contiguous(); }

}  // namespace

bool is_rms_norm_input(const at::Tensor& x, const at::Tensor& weight_C) {
  if (x.dim() == 0 || weight_C.dim() != 1 || weight_C.size(0) != x.size(-1)) return false;
  if (x.is_cuda()) return is_cuda_input(x) && is_cuda_input(weight_C);
  return has_elements(x) && has_elements(weight_C) && weight_C.size(0) > 0;
}

RmsNormResult rms_norm(const at::Tensor& x, const at::Tensor& weight_C, double eps,
                       at::ScalarType dtype, CpuIsa isa) {
  TORCH_INTERNAL_ASSERT(is_rms_norm_input(x, weight_C));
  if (x.is_cuda()) return cuda_kernels()->rms_norm(x, weight_C, eps, dtype);
  const at::Tensor in = x.contiguous(), weight = floats(weight_C);
  const int64_t columns = weight.size(0), rows = in.numel() / columns;
  RmsNormResult result{.y = at::empty(in.sizes(), in.options().dtype(dtype)),
                       .rstd_N = at::empty({rows}, at::kFloat)};
  const RmsNormArgs args{.columns = columns,
                         .eps = static_cast<float>(eps),
                         .x = elements_of(in),
                         .y = elements_of(result.y),
                         .weight = weight.const_data_ptr<float>(),
                         .rstd = result.rstd_N.mutable_data_ptr<float>()};
  const RowKernels& kernels = row_kernels(isa);
  at::parallel_for(0, rows, rows_per_task(columns),
                   [&](int64_t begin, int64_t end) { kernels.rms_norm(args, begin, end); });
  return result;
}

RmsNormGradients rms_norm_gradient(const at::Tensor& x, const at::Tensor& weight_C,
                                   const at::Tensor& rstd_N, const at::Tensor& dy, CpuIsa isa) {
  TORCH_INTERNAL_ASSERT(is_rms_norm_input(x, weight_C) && dy.sizes() == x.sizes());
  if (x.is_cuda()) return cuda_kernels()->rms_norm_gradient(x, weight_C, rstd_N, dy);
  const at::Tensor in = x.contiguous(), gradient = dy.contiguous(), weight = floats(weight_C);
  const int64_t columns = weight.size(0), rows = in.numel() / columns;
  const at::Tensor dx = at::empty(in.sizes(), in.options());
  const RmsNormGradientArgs args{.columns = columns,
                                 .x = elements_of(in),
                                 .dy = elements_of(gradient),
                                 .dx = elements_of(dx),
                                 .weight = weight.const_data_ptr<float>(),
                                 .rstd = rstd_N.const_data_ptr<float>()};
  const int64_t num_chunks = (rows + kRowChunk - 1) / kRowChunk;
  const at::Tensor partial_KC = at::empty({num_chunks, columns}, at::kFloat);
  auto* partial = partial_KC.mutable_data_ptr<float>();
  const RowKernels& kernels = row_kernels(isa);
  at::parallel_for(0, num_chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      kernels.rms_norm_gradient(args, k * kRowChunk, std::min((k + 1) * kRowChunk, rows),
                                partial + k * columns);
    }
  });
  return {.x = dx, .weight_C = sum_chunks(partial_KC).to(weight_C.scalar_type())};
}

}  // namespace vgen::kernels
