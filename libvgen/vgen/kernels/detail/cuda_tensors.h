#pragma once
// From tensors to what the CUDA kernels take.

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContextLight.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

#include "vgen/kernels/detail/cuda_kernels.h"
#include "vgen/kernels/detail/cuda_rows.h"

namespace vgen::kernels {

inline constexpr uintptr_t kAlignment = 16;  ///< of what is read at once, bytes

inline bool is_aligned(const at::Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kAlignment == 0;
}

/// `tensor` where its rows lie one behind the other and begin where they should, else a copy.
inline at::Tensor rows_of(const at::Tensor& tensor) {
  at::Tensor rows = tensor.contiguous();
  return is_aligned(rows) ? rows : rows.clone();
}

inline Number number_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return Number::kFloat32;
    case at::kBFloat16:
      return Number::kBFloat16;
    case at::kHalf:
      return Number::kFloat16;
    default:
      TORCH_INTERNAL_ASSERT(false, "no kernel for ", c10::toString(dtype));
  }
}

inline Numbers numbers_of(const at::Tensor& tensor) {
  return {.data = tensor.data_ptr(), .type = number_of(tensor.scalar_type())};
}

inline at::Tensor floats(const at::Tensor& tensor) { return rows_of(tensor.to(at::kFloat)); }

inline at::Tensor empty_floats(at::IntArrayRef sizes, const at::Tensor& like) {
  return at::empty(sizes, like.options().dtype(at::kFloat));
}

template <class Args>
void run(const Args& args, const at::Tensor& on) {
  const c10::cuda::CUDAGuard guard(on.device());
  launch(args, c10::cuda::getCurrentCUDAStream(on.device().index()));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

inline int64_t num_processors(const at::Tensor& on) {
  return at::cuda::getDeviceProperties(on.device().index())->multiProcessorCount;
}

/// Blocks that share `rows` of so many columns where each leaves sums of its own: enough to fill
/// the device, few enough that adding them up is cheap.
inline int64_t parts_for(const at::Tensor& on, int64_t rows, int64_t columns) {
  constexpr int64_t kThreadsPerProcessor = 2048, kRowsPerBlock = 4;
  const int64_t threads = row_threads(columns);
  const int64_t at_once = num_processors(on) * std::max<int64_t>(1, kThreadsPerProcessor / threads);
  return std::clamp<int64_t>(rows / kRowsPerBlock, 1, at_once);
}

/// Of cuda_norms.cpp.
void set_cuda_norms(CudaKernels& table);

}  // namespace vgen::kernels
