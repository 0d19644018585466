#include "vgen/train/ema.h"

#include <torch/torch.h>

namespace vgen::train {

Ema::Ema(const torch::nn::Module& module, double decay) : module_(module), decay_(decay) {
  for (const auto& item : checkpoint::named_parameters(module)) {
    parameters_.push_back(item.tensor);
    averages_.push_back(item.tensor.detach().clone());
  }
}

void Ema::update() {
  const at::NoGradGuard no_grad;
  at::_foreach_lerp_(averages_, parameters_, 1 - decay_);
}

checkpoint::NamedTensors Ema::state() const {
  checkpoint::NamedTensors tensors = checkpoint::named_state(module_);
  size_t next = 0;
  const auto parameters = checkpoint::named_parameters(module_);
  for (auto& item : tensors) {
    if (next < parameters.size() && item.name == parameters[next].name) {
      item.tensor = averages_[next++];
    }
  }
  return tensors;
}

void Ema::swap() {
  // The values change places, not the tensors: whoever caches by version or address sees it.
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const at::Tensor held = parameters_[i].detach().clone();
    parameters_[i].copy_(averages_[i]);
    averages_[i].copy_(held);
  }
}

}  // namespace vgen::train
