#include "vgen/train/ema.h"

#include <torch/torch.h>

namespace vgen::train {

namespace {

std::vector<at::Tensor> tensors_of(const checkpoint::NamedTensors& items) {
  std::vector<at::Tensor> tensors;
  for (const auto& item : items) {
    if (item.tensor.numel() > 0) tensors.push_back(item.tensor);
  }
  return tensors;
}

}  // namespace

Ema::Ema(checkpoint::NamedTensors parameters, double decay)
    : decay_(decay), parameters_(std::move(parameters)), averages_(parameters_) {
  for (auto& item : averages_) item.tensor = item.tensor.detach().clone();
}

void Ema::update() {
  const at::NoGradGuard no_grad;
  const auto averages = tensors_of(averages_);
  if (!averages.empty()) at::_foreach_lerp_(averages, tensors_of(parameters_), 1 - decay_);
}

void Ema::swap() {
  // The values change places, not the tensors: whoever caches by version or address sees it.
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const at::Tensor held = parameters_[i].tensor.detach().clone();
    parameters_[i].tensor.copy_(averages_[i].tensor);
    averages_[i].tensor.copy_(held);
  }
}

}  // namespace vgen::train
