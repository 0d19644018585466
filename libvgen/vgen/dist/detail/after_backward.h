#pragma once
// A place in the backward pass.

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace vgen::dist::detail {

/// The same values, to be used from here on instead of `inputs`. In each backward pass `call` is
/// called once all gradients of what was computed of them afterwards are known, those of parameters
/// too: autograd takes the youngest node first, and this one is older than all of those. Inputs
/// that want no gradient stay as they are; without others there is no call.
std::vector<at::Tensor> after_backward(const std::vector<at::Tensor>& inputs,
                                       std::function<void()> call);

}  // namespace vgen::dist::detail
