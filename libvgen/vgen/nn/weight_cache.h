#pragma once
// What is derived from a weight and worth keeping while the weight stays the same.

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <functional>
#include <mutex>

namespace vgen::nn {

/// Keeps tensors made from one weight (casts, other layouts) until its values change. A change is
/// seen by LibTorch's version counter, so by in-place operators (copy_ of a checkpoint's or of
/// EMA's values), and by the address, so by set_data. Not seen: a write through `weight.data()`,
/// which has a counter of its own; and at::_fused_adam_ and at::_fused_adamw_, which count nothing
/// (quirk of LibTorch 2.11): train::Optimizer counts for them. May be used from several threads at
/// once while nobody writes the weight.
class WeightCache {
 public:
  static constexpr size_t kSlots = 3;

  /// The tensor of that slot, made by `make` when the weight is not the one it was made from.
  at::Tensor get(const at::Tensor& weight, size_t slot,
                 const std::function<at::Tensor(const at::Tensor& weight)>& make);

 private:
  std::mutex mutex_;
  at::Tensor source_;  ///< shares the storage of the weight, so that its address stays taken
  uint32_t version_ = 0;
  std::array<at::Tensor, kSlots> slots_;
};

}  // namespace vgen::nn
