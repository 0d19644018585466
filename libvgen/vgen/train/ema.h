#pragma once
// Exponential moving average of weights.

#include <vector>

#include "vgen/checkpoint/named_tensors.h"

namespace vgen::train {

/// Averages of parameters, or of the parts of them that a rank holds.
class Ema {
 public:
  /// Starts as a copy of the parameters.
  Ema(checkpoint::NamedTensors parameters, double decay);

  /// average = decay * average + (1 - decay) * parameter
  void update();

  /// The averages under the names of the parameters, in their order; they are shared.
  const checkpoint::NamedTensors& state() const { return averages_; }

  /// Averages and parameters change their values.
  void swap();

 private:
  double decay_;
  checkpoint::NamedTensors parameters_, averages_;
};

}  // namespace vgen::train
