#include "vgen/nn/weight_cache.h"

#include <ATen/ATen.h>

namespace vgen::nn {

at::Tensor WeightCache::get(const at::Tensor& weight, size_t slot,
                            const std::function<at::Tensor(const at::Tensor& weight)>& make) {
  const at::NoGradGuard no_grad;
  if (weight.is_inference()) return make(weight.detach());  // has no version counter
  const std::lock_guard lock(mutex_);
  if (!source_.defined() || source_.const_data_ptr() != weight.const_data_ptr() ||
      version_ != weight._version()) {
    slots_ = {};
    source_ = weight.detach();
    version_ = static_cast<uint32_t>(weight._version());
  }
  if (!slots_.at(slot).defined()) slots_.at(slot) = make(source_);
  return slots_.at(slot);
}

}  // namespace vgen::nn
