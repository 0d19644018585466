#pragma once
// Dynamic loss scaling for fp16 (torch.amp.GradScaler; the same defaults and kernels).

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "vgen/core/config.h"
#include "vgen/io/json.h"

namespace vgen::train {

struct GradScalerConfig {  // YAML section `grad_scaler:`
  double initial_scale = 65536;
  int64_t growth_interval = 2000;  ///< steps without overflow until the scale is doubled
  double max_scale = 0;            ///< a larger scale goes back to it after a step; 0 = no limit
};
template <class Visitor>
void visit_fields(Visitor& v, GradScalerConfig& c) {
  v("initial_scale", c.initial_scale, more_than(0));
  v("growth_interval", c.growth_interval, at_least(1));
  v("max_scale", c.max_scale, at_least(0));
}

class GradScaler {
 public:
  /// Without use the scale is 1 and gradients are checked only.
  GradScaler(bool is_enabled, c10::Device device, const GradScalerConfig& config = {});

  bool is_enabled() const { return is_enabled_; }
  at::Tensor scale(const at::Tensor& loss) const;

  /// Divides the gradients by the scale. Returns a float scalar: 1 if one of them was not finite.
  at::Tensor unscale(const std::vector<at::Tensor>& parameters) const;

  /// After the step: halves the scale if found_inf, doubles it after growth_interval steps without.
  /// quirk: with a max_scale the scale may be above it for one step; then it is set back and
  /// nothing else happens (VAR's amp_sc.py: AmpOptimizer).
  void update(const at::Tensor& found_inf);

  double current_scale() const;  ///< waits for the device
  io::Json state() const;
  void load_state(const io::Json& state);

 private:
  bool is_enabled_;
  GradScalerConfig config_;
  at::Tensor scale_;           // float32 scalar
  at::Tensor growth_tracker_;  // int32 scalar: steps since the scale changed
};

}  // namespace vgen::train
