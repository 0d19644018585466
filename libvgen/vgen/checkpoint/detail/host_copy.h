#pragma once
// Tensors copied to host memory, so that training may change them while they are written.

#include <ATen/core/Tensor.h>

#include <vector>

#include "vgen/checkpoint/store.h"

namespace vgen::checkpoint::detail {

/// One piece of memory, as large as the largest copy so far; page-locked where tensors come from
/// CUDA.
class HostCopy {
 public:
  /// The same files with tensors on the CPU, which are overwritten by the next call.
  std::vector<TensorFile> copy(const std::vector<TensorFile>& files);

 private:
  at::Tensor buffer_;  ///< bytes
};

}  // namespace vgen::checkpoint::detail
