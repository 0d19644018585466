#include "vgen/kernels/unit_heads.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <bit>

#include "vgen/kernels/detail/cuda_kernels.h"
#include "vgen/kernels/detail/row_kernels.h"
#include "vgen/kernels/detail/tensor_elements.h"

namespace vgen::kernels {
namespace {

constexpr int64_t kRowChunk = 16;  ///< positions whose gradients to the scales are summed at once

}  // namespace

bool is_unit_heads_input(const at::Tensor& qkv_BL3HD) {
  if (qkv_BL3HD.dim() != 5 || qkv_BL3HD.size(2) != 3) return false;
  if (!qkv_BL3HD.is_cuda()) return has_elements(qkv_BL3HD) && qkv_BL3HD.numel() > 0;
  const int64_t heads = qkv_BL3HD.size(3), head_dim = qkv_BL3HD.size(4);
  return is_cuda_input(qkv_BL3HD, kMaxCudaHeadDim) && std::has_single_bit<uint64_t>(head_dim) &&
         heads * head_dim <= kMaxCudaColumns;
}

UnitHeadsResult unit_heads(const at::Tensor& qkv_BL3HD, const at::Tensor& scale_H, CpuIsa isa) {
  TORCH_INTERNAL_ASSERT(is_unit_heads_input(qkv_BL3HD) && scale_H.numel() == qkv_BL3HD.size(3) &&
                        scale_H.device() == qkv_BL3HD.device());
  if (qkv_BL3HD.is_cuda()) return cuda_kernels()->unit_heads(qkv_BL3HD, scale_H);
  const at::Tensor in = qkv_BL3HD.contiguous(), scale = scale_H.to(at::kFloat).contiguous();
  const int64_t rows = in.size(0) * in.size(1), heads = in.size(3), head_dim = in.size(4);
  TORCH_INTERNAL_ASSERT(scale.numel() == heads);
  const auto part = [&] {
    return at::empty({in.size(0), in.size(1), heads, head_dim}, in.options());
  };
  UnitHeadsResult result{.query_BLHD = part(),
                         .key_BLHD = part(),
                         .value_BLHD = part(),
                         .rnorm_N2H = at::empty({rows, 2, heads}, at::kFloat)};
  const UnitHeadsArgs args{.heads = heads,
                           .head_dim = head_dim,
                           .qkv = elements_of(in),
                           .query = elements_of(result.query_BLHD),
                           .key = elements_of(result.key_BLHD),
                           .value = elements_of(result.value_BLHD),
                           .scale = scale.const_data_ptr<float>(),
                           .rnorm = result.rnorm_N2H.mutable_data_ptr<float>()};
  const RowKernels& kernels = row_kernels(isa);
  at::parallel_for(0, rows, rows_per_task(3 * heads * head_dim),
                   [&](int64_t begin, int64_t end) { kernels.unit_heads(args, begin, end); });
  return result;
}

UnitHeadsGradients unit_heads_gradient(const at::Tensor& qkv_BL3HD, const at::Tensor& scale_H,
                                       const at::Tensor& rnorm_N2H, const at::Tensor& dquery_BLHD,
                                       const at::Tensor& dkey_BLHD, const at::Tensor& dvalue_BLHD,
                                       CpuIsa isa) {
  TORCH_INTERNAL_ASSERT(is_unit_heads_input(qkv_BL3HD) && scale_H.numel() == qkv_BL3HD.size(3));
  for (const at::Tensor& gradient : {dquery_BLHD, dkey_BLHD, dvalue_BLHD}) {
    TORCH_INTERNAL_ASSERT(gradient.scalar_type() == qkv_BL3HD.scalar_type() &&
                          gradient.device() == qkv_BL3HD.device() &&
                          3 * gradient.numel() == qkv_BL3HD.numel());
  }
  if (qkv_BL3HD.is_cuda()) {
    return cuda_kernels()->unit_heads_gradient(qkv_BL3HD, scale_H, rnorm_N2H, dquery_BLHD,
                                               dkey_BLHD, dvalue_BLHD);
  }
  const at::Tensor in = qkv_BL3HD.contiguous(), scale = scale_H.to(at::kFloat).contiguous();
  const at::Tensor dquery = dquery_BLHD.contiguous(), dkey = dkey_BLHD.contiguous();
  const at::Tensor dvalue = dvalue_BLHD.contiguous();
  const int64_t rows = in.size(0) * in.size(1), heads = in.size(3), head_dim = in.size(4);
  const at::Tensor dqkv = at::empty(in.sizes(), in.options());
  const UnitHeadsGradientArgs args{.heads = heads,
                                   .head_dim = head_dim,
                                   .qkv = elements_of(in),
                                   .dquery = elements_of(dquery),
                                   .dkey = elements_of(dkey),
                                   .dvalue = elements_of(dvalue),
                                   .dqkv = elements_of(dqkv),
                                   .scale = scale.const_data_ptr<float>(),
                                   .rnorm = rnorm_N2H.const_data_ptr<float>()};
  const int64_t chunks = (rows + kRowChunk - 1) / kRowChunk;
  const at::Tensor partial_KH = at::empty({chunks, heads}, at::kFloat);
  auto* sums = partial_KH.mutable_data_ptr<float>();
  const RowKernels& kernels = row_kernels(isa);
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      kernels.unit_heads_gradient(args, k * kRowChunk, std::min((k + 1) * kRowChunk, rows),
                                  sums + k * heads);
    }
  });
  return {.qkv_BL3HD = dqkv, .scale_H = partial_KH.sum(0)};
}

}  // namespace vgen::kernels
