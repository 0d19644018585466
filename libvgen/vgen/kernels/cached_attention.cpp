#include "vgen/kernels/cached_attention.h"

#include <ATen/ATen.h>

#include <bit>

#include "vgen/kernels/detail/cuda_kernels.h"

namespace vgen::kernels {

bool has_cached_attention(const at::Tensor& cache_SKLD) {
  return is_cuda_input(cache_SKLD, kMaxCudaHeadDim) && cache_SKLD.dim() == 4 &&
         std::has_single_bit<uint64_t>(cache_SKLD.size(3));
}

at::Tensor cached_attention(const CachedAttention& args) {
  const at::Tensor& keys = args.key_SKLD;
  TORCH_INTERNAL_ASSERT(has_cached_attention(keys) && keys.is_contiguous() &&
                        args.value_SKLD.is_contiguous() &&
                        args.value_SKLD.sizes() == keys.sizes() &&
                        args.value_SKLD.scalar_type() == keys.scalar_type());
  TORCH_INTERNAL_ASSERT(args.qkv_RF.device() == keys.device() &&
                        args.value_SKLD.device() == keys.device() &&
                        args.rope_LP2.device() == keys.device());
  TORCH_INTERNAL_ASSERT(args.qkv_RF.is_contiguous() && args.qkv_RF.dim() == 2 &&
                        args.qkv_RF.scalar_type() == keys.scalar_type());
  TORCH_INTERNAL_ASSERT(args.rope_LP2.is_contiguous() && args.rope_LP2.size(0) >= keys.size(2) &&
                        2 * args.rope_LP2.size(1) == keys.size(3));
  for (const at::Tensor& index_R : {args.slot_R, args.position_R, args.first_R}) {
    TORCH_INTERNAL_ASSERT(index_R.device() == keys.device() && index_R.is_contiguous() &&
                          index_R.scalar_type() == at::kLong &&
                          index_R.numel() == args.qkv_RF.size(0));
  }
  return cuda_kernels()->cached_attention(args);
}

}  // namespace vgen::kernels
