#pragma once
// Golden values as tensors.

#include <torch/torch.h>

#include <string>

namespace vgen::test {

/// tests/golden/<name>, a .npy file, as a tensor with memory of its own.
torch::Tensor golden_tensor(const std::string& name);

}  // namespace vgen::test
