#pragma once
// Learning rate and weight decay over the steps of a run.

#include <cstdint>
#include <string>

#include "vgen/core/config.h"

namespace vgen::train {

struct ScheduleConfig {  // YAML section `schedule:`
  /// constant, cosine, linear; and those of VAR's --sche: cos, exp, lin, lin0, lin00, linT (which
  /// is lin0.3 there with `turn: 0.3` here).
  std::string kind = "constant";
  int64_t warmup_steps = 0;  ///< steps over which the rate rises linearly to its full value
  double warmup_epochs = 0;  ///< the same in passes over the data; instead of warmup_steps
  double warmup_start = 0;   ///< share of the full rate before the first warm-up step
  double final_ratio = 0;    ///< share of the full rate at the last step
  double turn = 0;           ///< linT: after which share of the way it falls faster
  /// Weight decay at the last step over that at the first: half a cosine leads there, from the
  /// first step on.
  double weight_decay_final_ratio = 1;
};
template <class Visitor>
void visit_fields(Visitor& v, ScheduleConfig& c) {
  v("kind", c.kind,
    one_of({"constant", "cosine", "linear", "cos", "exp", "lin", "lin0", "lin00", "linT"}));
  v("warmup_steps", c.warmup_steps, at_least(0));
  v("warmup_epochs", c.warmup_epochs, at_least(0));
  v("warmup_start", c.warmup_start, between(0, 1));
  v("final_ratio", c.final_ratio, between(0, 1));
  v("turn", c.turn, between(0, 1));
  v("weight_decay_final_ratio", c.weight_decay_final_ratio, at_least(0));
}

/// Factors on the configured learning rate and weight decay.
struct Rates {
  double lr = 1;
  double weight_decay = 1;
};

/// The same with warmup_epochs turned into warmup_steps, rounded. Throws Error(kInvalidArgument)
/// when both are given.
ScheduleConfig in_steps(ScheduleConfig config, int64_t steps_per_epoch);

/// The factors of a step. `step` counts from 0; `total_steps` is the length of the run. Warm-up:
/// step s has warmup_start + (1 - warmup_start) * (s + 1) / warmup_steps; afterwards the decay runs
/// from 1 at the end of the warm-up to final_ratio at the last step. warmup_epochs is not looked
/// at.
///
/// VAR's kinds (its lr_control.py: lr_wd_annealing) warm up by s / warmup_steps, so that the first
/// step has warmup_start itself. Then, p the share of the way to the last step, e = final_ratio:
///   cos              e + (1 - e) (1 + cos(pi p)) / 2
///   exp              1 up to p = 0.15, then e^((p - 0.15) / 0.85)
///   lin lin0 lin00   1 up to T = 0.15, 0.05, 0, then linear to e
///   linT             linear to the mean of 1 and what lin00 has at T = turn, then linear to e
Rates rates_at(const ScheduleConfig& config, int64_t step, int64_t total_steps);

}  // namespace vgen::train
