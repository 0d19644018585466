#pragma once
// From tensors to what the kernels take.

#include <ATen/core/Tensor.h>

#include <algorithm>

#include "vgen/kernels/detail/elements.h"

namespace vgen::kernels {

/// On the CPU, float32 or bfloat16.
inline bool has_elements(const at::Tensor& tensor) {
  return tensor.is_cpu() &&
         (tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16);
}

/// Of an undefined tensor: null.
inline Elements elements_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  return {.data = tensor.data_ptr(), .is_bf16 = tensor.scalar_type() == at::kBFloat16};
}

/// The element `index` and those behind it.
inline Elements behind(Elements elements, int64_t index) {
  char* const data = static_cast<char*>(elements.data);
  return {.data = data + index * (elements.is_bf16 ? 2 : 4), .is_bf16 = elements.is_bf16};
}

/// Rows of so many columns that are worth a thread.
inline int64_t rows_per_task(int64_t columns) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, columns));
}

}  // namespace vgen::kernels
