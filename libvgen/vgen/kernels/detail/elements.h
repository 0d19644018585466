#pragma once
// Tensors as the kernels see them. No LibTorch in here; tensor_elements.h makes them.

namespace vgen::kernels {

/// float32, or bfloat16 as its bits. Arithmetic is in float32, rounded once.
struct Elements {
  void* data = nullptr;
  bool is_bf16 = false;
};

}  // namespace vgen::kernels
