#pragma once
// VAR's progressive training: a run begins with the first scales and takes in one after the other
// (its train.py --pg; unused by the published models).

#include <cstdint>

#include "vgen/core/config.h"

namespace vgen::train {

struct ProgressiveConfig {  // YAML section `progressive:`
  /// Share of the run after which all scales are learnt; 0 = all from the beginning. VAR's script
  /// then also takes the schedule linT with this share as its turn.
  double share = 0;
  int64_t first_scale = 4;   ///< last scale of the first stage, which lasts through the warm-up
  double warmup_epochs = 0;  ///< over which the loss of a new scale gets its full weight; 0 = a
                             ///< 300th of the run
};
template <class Visitor>
void visit_fields(Visitor& v, ProgressiveConfig& c) {
  v("share", c.share, between(0, 1));
  v("first_scale", c.first_scale, at_least(0));
  v("warmup_epochs", c.warmup_epochs, at_least(0));
}

/// How long a run is, in optimizer steps.
struct RunLength {
  int64_t total_steps = 0;
  int64_t warmup_steps = 0;  ///< of the learning rate
  int64_t steps_per_epoch = 1;
};

/// What is learnt in a step.
struct ProgressiveStage {
  int64_t last_scale = 0;
  double newest_weight = 1;  ///< factor on the loss of the last scale's tokens
};

/// The stage of `step`, which counts from 0, among `num_scales` scales. A function of its arguments
/// alone, so nothing is saved.
ProgressiveStage progressive_stage(const ProgressiveConfig& config, int64_t num_scales,
                                   const RunLength& length, int64_t step);

}  // namespace vgen::train
