#pragma once
// Dynamic loss scaling for fp16 (torch.amp.GradScaler; the same defaults and kernels).

#include <ATen/core/Tensor.h>

#include <vector>

#include "vgen/io/json.h"

namespace vgen::train {

class GradScaler {
 public:
  /// Without use the scale is 1 and gradients are checked only.
  GradScaler(bool is_enabled, c10::Device device);

  bool is_enabled() const { return is_enabled_; }
  at::Tensor scale(const at::Tensor& loss) const;

  /// Divides the gradients by the scale. Returns a float scalar: 1 if one of them was not finite.
  at::Tensor unscale(const std::vector<at::Tensor>& parameters) const;

  /// After the step: halves the scale if found_inf, doubles it after 2000 steps without.
  void update(const at::Tensor& found_inf);

  double current_scale() const;  ///< waits for the device
  io::Json state() const;
  void load_state(const io::Json& state);

 private:
  bool is_enabled_;
  at::Tensor scale_;           // float32 scalar
  at::Tensor growth_tracker_;  // int32 scalar: steps since the scale changed
};

}  // namespace vgen::train
