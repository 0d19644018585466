#pragma once
// Golden arrays and weights as tensors.

#include <torch/torch.h>

#include <string>

namespace vgen::test {

/// tests/golden/<name> as a tensor of its own memory.
torch::Tensor golden_tensor(const std::string& name);

/// Loads a golden weight file into a module, strictly; `key` as in io::load_state_dict.
void load_golden(torch::nn::Module& module, const std::string& name,
                 const std::string& key = "auto");

}  // namespace vgen::test
