#pragma once
// Exponential moving average of weights.

#include <vector>

#include "vgen/checkpoint/named_tensors.h"

namespace vgen::train {

/// Averages of the parameters of a module, which must outlive it. Buffers are not averaged: state()
/// takes them from the module, so that it holds every name of the module's own state.
class Ema {
 public:
  /// Starts as a copy of the parameters.
  Ema(const torch::nn::Module& module, double decay);

  /// average = decay * average + (1 - decay) * parameter
  void update();

  /// The averages under the names of the module's state, in its order; they are shared, the buffers
  /// are the module's.
  checkpoint::NamedTensors state() const;

  /// While this lives, the module has the averages as its weights.
  class Swap {
   public:
    explicit Swap(Ema& ema) : ema_(ema) { ema_.swap(); }
    ~Swap() { ema_.swap(); }
    Swap(const Swap&) = delete;
    Swap& operator=(const Swap&) = delete;

   private:
    Ema& ema_;
  };

 private:
  void swap();

  const torch::nn::Module& module_;
  double decay_;
  std::vector<at::Tensor> parameters_, averages_;
};

}  // namespace vgen::train
